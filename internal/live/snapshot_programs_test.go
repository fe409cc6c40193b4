package live

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/testbed"
)

// TestSnapshotShell takes an interactive sqlite3 through cycles in the middle of a
// transaction: nobody else sees it, or can write, until it ends it.
func TestSnapshotShell(t *testing.T) {
	sqlite := testbed.NeedTool(t, "sqlite3")
	folder := t.TempDir()
	file := filepath.Join(folder, "numbers")
	other := func(statement string) (string, error) {
		out, err := exec.Command(sqlite, "-batch", file, statement).CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	if out, err := other("create table numbers (n integer);"); err != nil {
		t.Fatal(out, err)
	}
	p := startRestored(t, sqlite, "-interactive", "-cmd", ".print ready", "-cmd", ".prompt '' ''", file)
	say := func(line, want string) {
		t.Helper()
		if _, err := p.stdin.WriteString(line + "\n"); err != nil {
			t.Fatal(err)
		}
		for {
			switch got := p.line(t); {
			case got == want:
				return
			case got == line, strings.HasPrefix(got, "SQLite "), strings.HasPrefix(got, "Enter "): // its echo, and its greeting
			default:
				t.Fatalf("%q is answered by %q, not %q", line, got, want)
			}
		}
	}
	say("begin immediate; create temp table own (t text); select 'begun';", "begun")
	cycles := 3
	if soak {
		cycles = 20
	}
	for n := range cycles {
		say(fmt.Sprintf("insert into numbers values (%d); insert into own values ('%d'); select count(*) from numbers, own;", n, n), fmt.Sprint((n+1)*(n+1)))
		p.cycle(t, filepath.Join(folder, fmt.Sprint("image", n)))
		if out, err := other("insert into numbers values (-1);"); err == nil || !strings.Contains(out, "locked") {
			t.Fatalf("somebody else writes in its transaction: %q, %v", out, err)
		}
		if out, err := other("select count(*) from numbers;"); err != nil || out != "0" {
			t.Fatalf("somebody else sees its transaction: %q, %v", out, err)
		}
	}
	say("commit; select sum(n) from numbers;", fmt.Sprint(cycles*(cycles-1)/2))
	if out, err := other("insert into numbers values (1000); select count(*) from numbers;"); err != nil || out != fmt.Sprint(cycles+1) {
		t.Errorf("behind its transaction: %q, %v", out, err)
	}
	say("select max(n) from numbers;", "1000")
}

// TestSnapshotBroker takes a mosquitto through cycles: sessions of clients that are away
// stay, with what waits for them, and what is retained.
func TestSnapshotBroker(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(t.TempDir(), "conf")
	text := fmt.Sprintf("listener %d 127.0.0.1\nallow_anonymous true\nuser nobody\nlog_dest none\n", port)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	k := &kept{port: port}
	k.start(t, "/usr/sbin/mosquitto", "-c", config)
	folder := t.TempDir()
	subscriber := mqttConnect(t, k.address(), "subscriber", false)
	subscriber.subscribe(t, "numbers/#")
	subscriber.leave(t)
	cycles := 3
	if soak {
		cycles = 20
	}
	for n := range cycles {
		publisher := mqttConnect(t, k.address(), "publisher", false)
		for i := range 5 {
			publisher.publish(t, "numbers/"+strconv.Itoa(i), fmt.Sprint(5*n+i), false)
		}
		publisher.publish(t, "last", fmt.Sprint(n), true)
		publisher.leave(t)
		k.rest(t)
		image := filepath.Join(folder, fmt.Sprint(n))
		vos(t, "checkpoint", k.target(), "-D", image).expect(t, 0)
		k.wait(t)
		vos(t, "restore", "-D", image).expect(t, 0)
		subscriber := mqttConnect(t, k.address(), "subscriber", true)
		for i := range 5 {
			if topic, message := subscriber.receive(t); topic != "numbers/"+strconv.Itoa(i) || message != fmt.Sprint(5*n+i) {
				t.Fatalf("%q waited under %q, not %d", message, topic, 5*n+i)
			}
		}
		subscriber.leave(t)
		fresh := mqttConnect(t, k.address(), fmt.Sprint("fresh", n), false)
		fresh.subscribe(t, "last")
		if topic, message := fresh.receive(t); topic != "last" || message != fmt.Sprint(n) {
			t.Fatalf("%q is retained under %q", message, topic)
		}
		fresh.leave(t)
	}
}

// An mqtt is a connection of a client whose session stays, by MQTT 3.1.1.
type mqtt struct {
	conn net.Conn
	in   *bufio.Reader
}

// Types of packets, in the upper half of their first byte.
const (
	mqttCONNECT    = 1
	mqttCONNACK    = 2
	mqttPUBLISH    = 3
	mqttPUBACK     = 4
	mqttSUBSCRIBE  = 8
	mqttSUBACK     = 9
	mqttDISCONNECT = 14
)

// mqttConnect connects a client, whose session is there already or not.
func mqttConnect(t *testing.T, address, client string, there bool) *mqtt {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return mqttOver(t, conn, client, there)
}

// mqttOver is mqttConnect by a connection.
func mqttOver(t *testing.T, conn net.Conn, client string, there bool) *mqtt {
	t.Helper()
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	m := &mqtt{conn, bufio.NewReader(conn)}
	// The protocol's level, flags of a session that stays, and no keep-alive.
	m.send(t, mqttCONNECT, 0, append(mqttText("MQTT"), 4, 0, 0, 0), mqttText(client))
	if body := m.await(t, mqttCONNACK); len(body) != 2 || body[1] != 0 || (body[0] == 1) != there && strings.HasPrefix(client, "sub") {
		t.Fatalf("the connection of %s is answered by %v", client, body)
	}
	return m
}

func mqttText(s string) []byte { return append([]byte{byte(len(s) >> 8), byte(len(s))}, s...) }

func (m *mqtt) send(t *testing.T, kind, flags byte, parts ...[]byte) {
	t.Helper()
	var body []byte
	for _, p := range parts {
		body = append(body, p...)
	}
	if len(body) > 127 {
		t.Fatal("the packet is too long")
	}
	if _, err := m.conn.Write(append([]byte{kind<<4 | flags, byte(len(body))}, body...)); err != nil {
		t.Fatal(err)
	}
}

// await reads the next packet, which is of a kind.
func (m *mqtt) await(t *testing.T, kind byte) []byte {
	t.Helper()
	var head [2]byte
	_, err := io.ReadFull(m.in, head[:])
	body := make([]byte, head[1])
	if err == nil {
		_, err = io.ReadFull(m.in, body)
	}
	if err != nil || head[0]>>4 != kind {
		t.Fatalf("a packet of kind %d, want %d; %v", head[0]>>4, kind, err)
	}
	return body
}

const mqttOnce = 1 << 1 // at least: quality of service 1

func (m *mqtt) subscribe(t *testing.T, topic string) {
	t.Helper()
	m.send(t, mqttSUBSCRIBE, 2, []byte{0, 1}, mqttText(topic), []byte{1})
	if body := m.await(t, mqttSUBACK); len(body) != 3 || body[2] != 1 {
		t.Fatalf("the subscription is answered by %v", body)
	}
}

func (m *mqtt) publish(t *testing.T, topic, message string, retain bool) {
	t.Helper()
	flags := byte(mqttOnce)
	if retain {
		flags |= 1
	}
	m.send(t, mqttPUBLISH, flags, mqttText(topic), []byte{0, 7}, []byte(message))
	m.await(t, mqttPUBACK)
}

// receive takes the next message.
func (m *mqtt) receive(t *testing.T) (topic, message string) {
	t.Helper()
	body := m.await(t, mqttPUBLISH)
	end := 2 + int(body[0])<<8 + int(body[1])
	m.send(t, mqttPUBACK, 0, body[end:end+2])
	return string(body[2:end]), string(body[end+2:])
}

// leave ends the connection, and waits until the broker has.
func (m *mqtt) leave(t *testing.T) {
	t.Helper()
	m.send(t, mqttDISCONNECT, 0)
	if n, err := m.in.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Fatalf("behind the end there is more: %d bytes, %v", n, err)
	}
	if err := m.conn.Close(); err != nil {
		t.Fatal(err)
	}
}
