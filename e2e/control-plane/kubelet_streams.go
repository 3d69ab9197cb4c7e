package main

// What a stream of the kubelet's server is joined to: a process in a container, a container's own input and output,
// a port in a pod's network, a log.

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"
)

// container runs further processes in a container, by its id.
type container struct{ id string }

// ExecInContainer runs a command as the container's user, with its rights.
func (c container) ExecInContainer(ctx context.Context, _, _, _ string, command []string, in io.Reader,
	out, errs io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	process, err := c.process(command, tty)
	if err != nil {
		return err
	}
	defer os.Remove(process)
	cmd := exec.CommandContext(ctx, "crun", "exec", "--process", process, c.id)
	// Who left a child behind that holds its output isn't waited for.
	cmd.WaitDelay = 5 * time.Second
	if tty {
		err = onTerminal(cmd, in, out, resize)
	} else {
		// Not `cmd.Stdin`: whose end would be waited for.
		var pipe io.WriteCloser
		if in != nil {
			if pipe, err = cmd.StdinPipe(); err != nil {
				return err
			}
		}
		if out != nil {
			cmd.Stdout = out
		}
		if errs != nil {
			cmd.Stderr = errs
		}
		if err = cmd.Start(); err != nil {
			return err
		}
		if in != nil {
			go func() {
				io.Copy(pipe, in)
				pipe.Close()
			}()
		}
		err = cmd.Wait()
	}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return utilexec.CodeExitError{Err: err, Code: exit.ExitCode()}
	case errors.Is(err, exec.ErrWaitDelay):
		return nil
	}
	return err
}

// process writes a process beside the container's own, in the words of the OCI runtime specification: which file.
func (c container) process(command []string, tty bool) (string, error) {
	text, err := os.ReadFile(filepath.Join(containersDir, c.id, "config.json"))
	if err != nil {
		return "", fmt.Errorf("the container has ended: %w", err)
	}
	var config struct {
		Process map[string]any `json:"process"`
	}
	if err := json.Unmarshal(text, &config); err != nil {
		return "", err
	}
	config.Process["args"], config.Process["terminal"] = command, tty
	if text, err = json.Marshal(config.Process); err != nil {
		return "", err
	}
	file, err := os.CreateTemp("", "exec-")
	if err != nil {
		return "", err
	}
	defer file.Close()
	_, err = file.Write(text)
	return file.Name(), err
}

// onTerminal runs a command of the container runtime whose process is given a terminal; the runtime hands over this
// side of it.
func onTerminal(cmd *exec.Cmd, in io.Reader, out io.WriteCloser, resize <-chan remotecommand.TerminalSize) error {
	dir, err := os.MkdirTemp("", "console-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "socket")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket})
	if err != nil {
		return err
	}
	defer listener.Close()
	cmd.Args = append([]string{cmd.Args[0], cmd.Args[1], "--console-socket", socket}, cmd.Args[2:]...)
	// Only what the runtime itself has to say.
	cmd.Stderr = out
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() {
		ended <- cmd.Wait()
		listener.Close()
	}()
	terminal, err := receive(listener)
	if err != nil {
		if failed := <-ended; failed != nil {
			return failed
		}
		return err
	}
	defer terminal.Close()
	go func() {
		for size := range resize {
			unix.IoctlSetWinsize(int(terminal.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Height, Col: size.Width})
		}
	}()
	if in != nil {
		go io.Copy(terminal, in)
	}
	said := make(chan struct{})
	go func() {
		// Ends with an error when nobody has the other side open any more.
		io.Copy(out, terminal)
		close(said)
	}()
	err = <-ended
	select {
	case <-said:
	case <-time.After(cmd.WaitDelay):
	}
	return err
}

// receive accepts a connection and takes the one file that comes over it.
func receive(listener *net.UnixListener) (*os.File, error) {
	conn, err := listener.AcceptUnix()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	text, control := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(text, control)
	if err != nil {
		return nil, err
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) == 0 {
		return nil, fmt.Errorf("the container runtime sent no terminal: %v", err)
	}
	files, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("the container runtime sent no terminal: %v", err)
	}
	return os.NewFile(uintptr(files[0]), "terminal"), nil
}

// attached is a container's own input and output.
type attached struct{ id, log string }

// AttachContainer shows what the container says from now on, and gives it what is typed.
func (a attached) AttachContainer(ctx context.Context, _, _, _ string, in io.Reader, out, errs io.WriteCloser, _ bool,
	_ <-chan remotecommand.TerminalSize) error {
	if in != nil {
		input, err := net.Dial("unix", filepath.Join(containersDir, a.id, "stdin.sock"))
		if err != nil {
			return errors.New("the container takes no input (`stdin: true` in its spec)")
		}
		go func() {
			io.Copy(input, in)
			input.Close()
		}()
	}
	to := out
	if to == nil {
		to = errs
	}
	ended := func() bool {
		_, err := os.Stat(filepath.Join(containersDir, a.id))
		return err != nil
	}
	if to == nil {
		for !ended() && pause(ctx) {
		}
		return nil
	}
	return copyLog(ctx, to, a.log, 0, -1, ended)
}

// network is a pod's, by the file that names it; the node's own where there is none.
type network struct{ file string }

// PortForward joins a stream to a port at the pod's loopback.
func (n network) PortForward(_ context.Context, name, _ string, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close()
	conn, err := n.dial(port)
	if err != nil {
		return fmt.Errorf("port %d of pod %s: %w", port, name, err)
	}
	defer conn.Close()
	go func() {
		io.Copy(conn, stream)
		// Whoever is there may have more to say.
		conn.(*net.TCPConn).CloseWrite()
	}()
	_, err = io.Copy(stream, conn)
	return err
}

func (n network) dial(port int32) (net.Conn, error) {
	there, err := os.Open(n.file)
	if os.IsNotExist(err) {
		return dialLoopback(port)
	} else if err != nil {
		return nil, err
	}
	defer there.Close()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	defer home.Close()
	// A socket is of the network that its thread is in when it is made. A thread that couldn't return ends with
	// its goroutine, because it stays locked.
	type dialled struct {
		conn net.Conn
		err  error
	}
	result := make(chan dialled, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
			result <- dialled{nil, err}
			return
		}
		conn, err := dialLoopback(port)
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		result <- dialled{conn, err}
	}()
	found := <-result
	return found.conn, found.err
}

func dialLoopback(port int32) (net.Conn, error) {
	conn, err := net.DialTCP("tcp4", nil, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(port)})
	if err == nil {
		return conn, nil
	}
	if conn, other := net.DialTCP("tcp6", nil, &net.TCPAddr{IP: net.IPv6loopback, Port: int(port)}); other == nil {
		return conn, nil
	}
	return nil, err
}

// copyLog writes a log: its last lines (all where `tail` is negative), at most so many bytes (without bound where
// `limit` is negative), and what is added until it has ended.
func copyLog(ctx context.Context, to io.Writer, log string, tail, limit int64, ended func() bool) error {
	file, err := os.Open(log)
	if err != nil {
		return err
	}
	defer file.Close()
	if tail >= 0 {
		if err := seekTail(file, tail); err != nil {
			return err
		}
	}
	var from io.Reader = file
	if limit >= 0 {
		from = io.LimitReader(file, limit)
	}
	for {
		// Asked before reading: what was said before the end is read.
		last := ended()
		if _, err := io.Copy(to, from); err != nil {
			return err
		}
		if last || !pause(ctx) {
			return nil
		}
	}
}

// seekTail moves to where the last lines of a file begin.
func seekTail(file *os.File, lines int64) error {
	const block = 16 << 10
	end, err := file.Seek(0, io.SeekEnd)
	if err != nil || end == 0 || lines == 0 {
		return err
	}
	buffer := make([]byte, block)
	// The last byte ends the last line, if it is a newline, and begins none.
	for at := end - 1; at > 0; {
		from := max(at-block, 0)
		part := buffer[:at-from]
		if _, err := file.ReadAt(part, from); err != nil {
			return err
		}
		for {
			newline := bytes.LastIndexByte(part, '\n')
			if newline < 0 {
				break
			}
			if lines--; lines == 0 {
				_, err = file.Seek(from+int64(newline)+1, io.SeekStart)
				return err
			}
			part = part[:newline]
		}
		at = from
	}
	_, err = file.Seek(0, io.SeekStart)
	return err
}
