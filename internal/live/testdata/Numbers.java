import java.net.*;
import java.util.*;
import java.util.concurrent.*;

/* Answers each connection by the next number, while other threads fill and check memory. */
class Numbers {
    static final ConcurrentHashMap<Integer, int[]> held = new ConcurrentHashMap<>();
    static volatile boolean wrong;

    static void work(int seed) {
        for (int n = 0;; n++) {
            int[] made = new int[1000 + n % 1000];
            Arrays.fill(made, seed + n);
            int[] before = held.put(seed * 100 + n % 100, made);
            if (before != null)
                for (int v : before)
                    wrong |= v != before[0];
            if (n % 50 == 0)
                try { Thread.sleep(1); } catch (InterruptedException e) { wrong = true; }
        }
    }

    public static void main(String[] args) throws Exception {
        for (int i = 0; i < 3; i++) {
            int seed = i;
            Thread t = new Thread(() -> work(seed));
            t.setDaemon(true);
            t.start();
        }
        ServerSocket server = new ServerSocket(Integer.parseInt(args[0]), 50, InetAddress.getLoopbackAddress());
        for (int n = 1;; n++)
            try (Socket client = server.accept()) {
                client.getInputStream().read(new byte[100]);
                client.getOutputStream().write(((wrong ? -1 : n) + "\n").getBytes());
            }
    }
}
