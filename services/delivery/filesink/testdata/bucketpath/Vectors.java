import java.io.PrintStream;
import java.time.Instant;
import java.time.ZoneId;
import java.time.zone.ZoneOffsetTransition;
import java.util.*;
import org.apache.flume.Clock;
import org.apache.flume.formatter.output.BucketPath;

/** Prints what Flume's BucketPath yields for templates made at random, a line of JSON each. See generate. */
public class Vectors {
  static final Random random = new Random(20261125);
  static final String LETTERS = "aAbBcdDeHIjklmMnpsStyYz";
  static final String[] LITERALS = {"/", "-", "_", ".", "logs", "dt=", "a b", "ü", "日", "$1", "\\", "%%", "+", "{", "}", "[x]", "~", "''", "#"};
  static final String[] ZONES = {"UTC", "Europe/Berlin", "Europe/London", "America/New_York", "America/St_Johns", "America/Sao_Paulo",
    "Asia/Kolkata", "Asia/Kathmandu", "Asia/Tehran", "Australia/Lord_Howe", "Pacific/Apia", "Pacific/Chatham", "Africa/Cairo"};
  // What is in header values that Spillway writes into names as it is.
  static final String[] VALUES = {"", "acme", "a.b-c_d", "ü", "日本", "$0", "\\1", "x y", "a=b", "..x", "{t}", "+"};
  // And what it does not.
  static final String[] UNSAFE = {"a/b", "../../etc", "..", "100%", "%Y", "tab\tline\n", "c:d", "\u0000"};
  static final int[] UNITS = {Calendar.SECOND, Calendar.MINUTE, Calendar.HOUR_OF_DAY};
  static final String[] UNIT_NAMES = {"second", "minute", "hour"};

  public static void main(String[] args) {
    Locale.setDefault(Locale.US);
    PrintStream out = new PrintStream(System.out, false, java.nio.charset.StandardCharsets.UTF_8);
    for (String zone : ZONES) // each escape alone
      for (char c : LETTERS.toCharArray()) vector(out, "%" + c, headers(time(zone), VALUES), zone, random.nextInt(7), random.nextInt(10) == 0);
    for (int i = 0; i < 4000; i++) {
      String zone = pick(ZONES);
      StringBuilder template = new StringBuilder();
      for (int n = 1 + random.nextInt(8); n > 0; n--)
        switch (random.nextInt(4)) {
          case 0: template.append(pick(LITERALS)); break;
          case 1: template.append("%{").append(pick("topic", "partition", "key", "timestamp", "offset", "tenant", "a.b-c", "none")).append("}"); break;
          default: template.append('%').append(LETTERS.charAt(random.nextInt(LETTERS.length())));
        }
      vector(out, template.toString(), headers(time(zone), VALUES), zone, random.nextInt(7), random.nextInt(10) == 0);
    }
    for (String unsafe : UNSAFE) vector(out, "%{tenant}", headers(time("UTC"), unsafe), "UTC", 0, false);
    out.flush();
  }

  /** Since 1972, when the last zone had an offset of whole minutes; half of them near a change of the offset. */
  static long time(String zone) {
    long ms = 70_000_000_000L + (long) (random.nextDouble() * 1_665_000_000_000L);
    if (random.nextBoolean()) {
      ZoneOffsetTransition t = ZoneId.of(zone).getRules().previousTransition(Instant.ofEpochMilli(ms));
      if (t != null && t.toEpochSecond() > 70_000_000) ms = t.toEpochSecond() * 1000 + random.nextInt(6 * 3600_000) - 3 * 3600_000;
    }
    return ms;
  }

  static Map<String, String> headers(long ms, String... values) {
    Map<String, String> h = new TreeMap<>();
    h.put("timestamp", Long.toString(ms));
    h.put("topic", pick("orders", "a.b_c-d"));
    h.put("partition", Integer.toString(random.nextInt(100)));
    h.put("offset", Long.toString(random.nextInt(1_000_000)));
    if (random.nextBoolean()) h.put("key", pick(values));
    h.put("tenant", pick(values));
    if (random.nextBoolean()) h.put("a.b-c", pick(values));
    return h;
  }

  static void vector(PrintStream out, String template, Map<String, String> headers, String zone, int rounding, boolean local) {
    boolean round = rounding < 3;
    int unit = round ? rounding : 0;
    int value = round ? 1 + random.nextInt(unit == 2 ? 24 : 60) : 1;
    long now = local ? time(zone) : 0;
    BucketPath.setClock(new Clock() { public long currentTimeMillis() { return now; } });
    String yields = BucketPath.escapeString(template, headers, TimeZone.getTimeZone(zone), round, UNITS[unit], value, local);
    StringBuilder json = new StringBuilder("{\"template\":").append(quote(template)).append(",\"zone\":").append(quote(zone));
    if (round) json.append(",\"unit\":").append(quote(UNIT_NAMES[unit])).append(",\"value\":").append(value);
    if (local) json.append(",\"now\":").append(now);
    json.append(",\"headers\":{");
    String comma = "";
    for (Map.Entry<String, String> e : headers.entrySet()) {
      json.append(comma).append(quote(e.getKey())).append(':').append(quote(e.getValue()));
      comma = ",";
    }
    out.println(json.append("},\"yields\":").append(quote(yields)).append('}'));
  }

  static String pick(String... of) { return of[random.nextInt(of.length)]; }

  static String quote(String s) {
    StringBuilder b = new StringBuilder("\"");
    for (char c : s.toCharArray())
      if (c < ' ' || c == '"' || c == '\\') b.append(String.format("\\u%04x", (int) c)); else b.append(c);
    return b.append('"').toString();
  }
}
