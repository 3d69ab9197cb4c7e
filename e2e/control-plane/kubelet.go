package main

// The part of a kubelet that the API server asks: exec, attach, logs and port-forward, over HTTPS.
//
//	kubectl -> API server --(its client certificate)--> :10250 -> this -> crun, log files, the pod's network
//
// The program that plays the rest of the kubelet (slotmesh-node) starts one on each node and leaves there what is
// looked up here:
//
//	/run/pods/NAMESPACE_POD                                   the uid of the pod of this name
//	/var/lib/containers/UID-CONTAINER-START/                  a container that runs: config.json, stdin.sock
//	/var/log/pods/NAMESPACE_POD_UID/CONTAINER/START.log       what it says, output and errors in one
//	/run/netns/pod-UID                                        its network, unless that is the node's

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

const (
	podsDir       = "/run/pods"
	containersDir = "/var/lib/containers"
	logsDir       = "/var/log/pods"
	networksDir   = "/run/netns"
	// Streams on which nothing is said for so long are closed.
	idle = 4 * time.Hour
)

// kubelet serves until the process ends.
func kubelet(args []string) error {
	flags := flag.NewFlagSet("kubelet-server", flag.ContinueOnError)
	listen := flags.String("listen", ":10250", "address to listen on")
	cert := flags.String("tls-cert-file", "", "certificate of this node")
	key := flags.String("tls-private-key-file", "", "its key")
	authority := flags.String("client-ca-file", "", "who signs those that may ask")
	user := flags.String("client-user", "", "the one user that may ask")
	if err := flags.Parse(args); err != nil {
		return err
	}
	pem, err := os.ReadFile(*authority)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return fmt.Errorf("%s has no certificate", *authority)
	}
	server := http.Server{
		Addr:    *listen,
		Handler: only(*user, routes()),
		// Streams take over the connection, which HTTP/2 doesn't let them.
		TLSConfig: &tls.Config{
			ClientAuth: tls.RequireAndVerifyClientCert,
			ClientCAs:  pool,
			MinVersion: tls.VersionTLS12,
			NextProtos: []string{"http/1.1"},
		},
		ReadHeaderTimeout: time.Minute,
	}
	return server.ListenAndServeTLS(*cert, *key)
}

// only lets nobody through but this user, as its certificate names it.
func only(user string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if found := r.TLS.PeerCertificates[0].Subject.CommonName; found != user {
			http.Error(w, fmt.Sprintf("%s may not ask this node", found), http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", with(serveLogs))
	// GET opens a WebSocket, POST SPDY.
	for _, method := range []string{"GET", "POST"} {
		mux.HandleFunc(method+" /exec/{namespace}/{pod}/{container}", with(serveExec))
		mux.HandleFunc(method+" /attach/{namespace}/{pod}/{container}", with(serveAttach))
		mux.HandleFunc(method+" /portForward/{namespace}/{pod}", with(servePortForward))
	}
	return mux
}

// pod is one of this node's.
type pod struct {
	name, namespace, uid string
}

var errNotFound = errors.New("not found")

// with looks up the pod of a request. What goes wrong before a stream begins is an HTTP status.
func with(serve func(http.ResponseWriter, *http.Request, pod) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		err := func() error {
			of := pod{name: r.PathValue("pod"), namespace: r.PathValue("namespace")}
			// A mux cleans paths, so neither is a path.
			uid, err := os.ReadFile(filepath.Join(podsDir, of.namespace+"_"+of.name))
			if err != nil {
				return fmt.Errorf("pod %s/%s on this node: %w", of.namespace, of.name, errNotFound)
			}
			of.uid = strings.TrimSpace(string(uid))
			return serve(w, r, of)
		}()
		switch {
		case errors.Is(err, errNotFound):
			http.Error(w, err.Error(), http.StatusNotFound)
		case err != nil:
			http.Error(w, err.Error(), http.StatusBadRequest)
		}
	}
}

func serveExec(w http.ResponseWriter, r *http.Request, of pod) error {
	options, err := remotecommand.NewOptions(r)
	if err != nil {
		return err
	}
	id, err := of.running(r.PathValue("container"))
	if err != nil {
		return err
	}
	remotecommand.ServeExec(w, r, container{id}, of.name, of.uid, r.PathValue("container"), r.URL.Query()["command"],
		options, idle, remotecommand.DefaultStreamCreationTimeout, remotecommand.SupportedStreamingProtocols)
	return nil
}

func serveAttach(w http.ResponseWriter, r *http.Request, of pod) error {
	options, err := remotecommand.NewOptions(r)
	if err != nil {
		return err
	}
	if options.TTY {
		return errors.New("containers have no terminal here: use exec with one")
	}
	id, err := of.running(r.PathValue("container"))
	if err != nil {
		return err
	}
	log, err := of.log(r.PathValue("container"), false)
	if err != nil {
		return err
	}
	remotecommand.ServeAttach(w, r, attached{id, log}, of.name, of.uid, r.PathValue("container"),
		options, idle, remotecommand.DefaultStreamCreationTimeout, remotecommand.SupportedStreamingProtocols)
	return nil
}

func servePortForward(w http.ResponseWriter, r *http.Request, of pod) error {
	options, err := portforward.NewV4Options(r)
	if err != nil {
		return err
	}
	portforward.ServePortForward(w, r, network{filepath.Join(networksDir, "pod-"+of.uid)}, of.name, of.uid, options,
		idle, remotecommand.DefaultStreamCreationTimeout, portforward.SupportedProtocols)
	return nil
}

func serveLogs(w http.ResponseWriter, r *http.Request, of pod) error {
	query := r.URL.Query()
	for _, name := range []string{"timestamps", "sinceSeconds", "sinceTime", "stream"} {
		if value := query.Get(name); value != "" && value != "false" && value != "All" {
			return fmt.Errorf("logs have no times and one stream here, so %s can't be had", name)
		}
	}
	name := r.PathValue("container")
	log, err := of.log(name, query.Get("previous") == "true")
	if err != nil {
		return err
	}
	tail, limit := int64(-1), int64(-1)
	for name, into := range map[string]*int64{"tailLines": &tail, "limitBytes": &limit} {
		if value := query.Get(name); value != "" {
			if *into, err = strconv.ParseInt(value, 10, 64); err != nil || *into < 0 {
				return fmt.Errorf("%s %q is no number of them", name, value)
			}
		}
	}
	ended := func() bool { return true }
	if query.Get("follow") == "true" {
		ended = of.ended(name, log)
	}
	w.Header().Set("Content-Type", "text/plain")
	return copyLog(r.Context(), flushing{w}, log, tail, limit, ended)
}

// starts lists the numbers with which a container of the pod has begun, by its logs.
func (of pod) starts(name string) ([]int, error) {
	files, err := os.ReadDir(filepath.Join(logsDir, of.namespace+"_"+of.name+"_"+of.uid, name))
	if err != nil {
		return nil, fmt.Errorf("container %s of pod %s/%s: %w", name, of.namespace, of.name, errNotFound)
	}
	var all []int
	for _, file := range files {
		if number, err := strconv.Atoi(strings.TrimSuffix(file.Name(), ".log")); err == nil {
			all = append(all, number)
		}
	}
	return all, nil
}

// running tells the id of a container that runs.
func (of pod) running(name string) (string, error) {
	starts, err := of.starts(name)
	if err != nil {
		return "", err
	}
	for _, start := range starts {
		id := fmt.Sprintf("%s-%s-%d", of.uid, name, start)
		if _, err := os.Stat(filepath.Join(containersDir, id)); err == nil {
			return id, nil
		}
	}
	return "", fmt.Errorf("container %s of pod %s/%s doesn't run", name, of.namespace, of.name)
}

// log tells where a container's last output is, or that of its start before.
func (of pod) log(name string, previous bool) (string, error) {
	starts, err := of.starts(name)
	if err != nil {
		return "", err
	}
	last := -1
	for _, start := range starts {
		last = max(last, start)
	}
	if previous {
		last--
	}
	if last < 0 {
		return "", fmt.Errorf("an earlier start of container %s of pod %s/%s: %w", name, of.namespace, of.name, errNotFound)
	}
	return filepath.Join(logsDir, of.namespace+"_"+of.name+"_"+of.uid, name, fmt.Sprintf("%d.log", last)), nil
}

// ended asks whether the start of a container whose log this is has ended.
func (of pod) ended(name, log string) func() bool {
	start := strings.TrimSuffix(filepath.Base(log), ".log")
	return func() bool {
		_, err := os.Stat(filepath.Join(containersDir, fmt.Sprintf("%s-%s-%s", of.uid, name, start)))
		return err != nil
	}
}

// flushing lets a reader see at once what was written.
type flushing struct{ to http.ResponseWriter }

func (w flushing) Write(bytes []byte) (int, error) {
	n, err := w.to.Write(bytes)
	if flusher, can := w.to.(http.Flusher); can {
		flusher.Flush()
	}
	return n, err
}

// pause waits for the next look at a file; false when nobody waits any more.
func pause(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(50 * time.Millisecond):
		return true
	}
}
