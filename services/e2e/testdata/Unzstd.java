import com.github.luben.zstd.ZstdInputStream;
import java.io.FileInputStream;

/** Prints what is in a .zst file. */
public class Unzstd {
  public static void main(String[] args) throws Exception {
    try (ZstdInputStream in = new ZstdInputStream(new FileInputStream(args[0]))) {
      in.transferTo(System.out);
    }
  }
}
