import java.io.*;
import java.nio.charset.StandardCharsets;
import java.util.*;

/** Prints the properties of each file it is given as java.util.Properties reads them, in hexadecimal. */
public class Dump {
    static String hex(String s) {
        StringBuilder b = new StringBuilder("x");
        for (byte c : s.getBytes(StandardCharsets.UTF_8)) b.append(String.format("%02x", c));
        return b.toString();
    }

    public static void main(String[] files) throws IOException {
        for (String file : files) {
            List<String> lines = new ArrayList<>();
            Properties p = new Properties() {
                @Override public synchronized Object put(Object k, Object v) {
                    lines.add(hex((String) k) + " " + hex((String) v));
                    return super.put(k, v);
                }
            };
            try (Reader in = new InputStreamReader(new FileInputStream(file), StandardCharsets.UTF_8)) {
                p.load(in);
                for (String line : lines) System.out.println(line);
            } catch (IllegalArgumentException e) {
                System.out.println("malformed");
            }
            System.out.println("end");
        }
    }
}
