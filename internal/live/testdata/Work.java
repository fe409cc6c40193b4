// Computes in compiled code, allocates, compresses and starts threads all the
// time, checks every result, and speaks the protocol of
// testbed/fixtures/report.h.
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.Arrays;
import java.util.HashMap;
import java.util.concurrent.atomic.AtomicLong;
import java.util.zip.Deflater;
import java.util.zip.Inflater;

public class Work {
	static final AtomicLong errors = new AtomicLong(), rounds = new AtomicLong(), born = new AtomicLong();
	static volatile String first = "";

	static void wrong(String text) {
		if (errors.incrementAndGet() == 1) first = text.replace('"', '\'');
	}

	static long sum(int n) {
		long h = 17;
		for (int i = 0; i < n; i++) h = h * 31 + (i ^ (h >>> 7));
		return h;
	}

	static void compress(byte[] data) throws Exception {
		byte[] packed = new byte[data.length + 100], back = new byte[data.length];
		Deflater deflater = new Deflater();
		deflater.setInput(data);
		deflater.finish();
		int n = deflater.deflate(packed);
		deflater.end();
		Inflater inflater = new Inflater();
		inflater.setInput(packed, 0, n);
		if (inflater.inflate(back) != data.length || !Arrays.equals(data, back)) wrong("a compressed block changed");
		inflater.end();
	}

	static void work(int id) {
		byte[] data = new byte[32 << 10];
		for (int i = 0; i < data.length; i++) data[i] = (byte) (i * 7 >> 5);
		long expected = sum(50000);
		try {
			for (long n = 0;; n++) {
				if (sum(50000) != expected) wrong("a sum changed");
				compress(data);
				HashMap<Integer, String> texts = new HashMap<>();
				for (int i = 0; i < 2000; i++) texts.put(i, "text " + (i + n));
				for (int i = 0; i < 2000; i++)
					if (!texts.get(i).equals("text " + (i + n))) wrong("entry " + i + " changed");
				Thread thread = new Thread(born::incrementAndGet);
				thread.start();
				thread.join();
				rounds.incrementAndGet();
				Thread.sleep(1);
			}
		} catch (Throwable e) {
			wrong(e.toString());
		}
	}

	public static void main(String[] args) throws Exception {
		for (int i = 0; i < 3; i++) {
			int id = i;
			new Thread(() -> work(id)).start();
		}
		System.out.println("ready");
		BufferedReader in = new BufferedReader(new InputStreamReader(System.in));
		for (String line; (line = in.readLine()) != null;) {
			if (line.equals("quit")) System.exit(0);
			if (born.get() < rounds.get()) wrong("threads are missing");
			System.out.println("{\"fixture\":\"java\",\"errors\":" + errors + ",\"error\":\"" + first + "\",\"progress\":" + rounds + "}");
		}
		System.exit(3);
	}
}
