package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/spillwayio/spillway/services/internal/config"
)

const deployDir = "../../deploy"

// TestVersionOfTheImage: an image is built without .git but for what says the commit.
func TestVersionOfTheImage(t *testing.T) {
	const commit, other = "0123456789abcdef0123456789abcdef01234567", "ffffffffffffffffffffffffffffffffffffffff"
	script, err := filepath.Abs(filepath.Join(deployDir, "commit"))
	if err != nil {
		t.Fatal(err)
	}
	for name, files := range map[string]map[string]string{
		"a branch":        {".git/HEAD": "ref: refs/heads/main\n", ".git/refs/heads/main": commit + "\n", ".git/packed-refs": other + " refs/heads/main\n"},
		"a packed branch": {".git/HEAD": "ref: refs/heads/a.b/c\n", ".git/packed-refs": "# pack-refs\n" + other + " refs/heads/b/c\n" + commit + " refs/heads/a.b/c\n"},
		"no branch":       {".git/HEAD": commit + "\n"},
		"no repository":   {},
	} {
		dir, want := t.TempDir(), commit
		if len(files) == 0 {
			want = ""
		}
		for path, content := range files {
			path = filepath.Join(dir, path)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		cmd := exec.Command(script)
		cmd.Dir = dir
		if out, err := cmd.Output(); err != nil || strings.TrimSpace(string(out)) != want {
			t.Errorf("%s: %q, %v, want %q", name, out, err, want)
		}
	}
	defer func(was string) { builtFrom = was }(builtFrom)
	builtFrom = commit
	if version() != commit {
		t.Errorf("version is %s, want what the linker was told", version())
	}
}

// documents are the YAML documents of a file.
func documents[T any](t *testing.T, path string) (all []T) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	decoder := yaml.NewDecoder(bytes.NewReader(b))
	for {
		var d T
		if err := decoder.Decode(&d); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		all = append(all, d)
	}
}

var fixedImage = regexp.MustCompile(`^(spillway:local|[a-z./-]+:v?[0-9]+\.[0-9]+\.[0-9]+)$`)

// TestCompose: each service has a bound for its memory and its log, networks and a fixed version,
// starts again after a reboot when it is to stay up, and asks Docker for nothing without limits.
func TestCompose(t *testing.T) {
	type service struct {
		Image, Restart, Entrypoint any
		ReadOnly                   bool `yaml:"read_only"`
		Logging                    struct{ Driver string }
		Deploy                     struct {
			Resources struct{ Limits struct{ Memory, Pids string } }
		}
		Networks    yaml.Node // names, or a map of them
		Ports       []string
		Healthcheck struct {
			StartInterval string `yaml:"start_interval"`
		}
	}
	files := documents[struct{ Services map[string]service }](t, "../../docker-compose.yml")
	if len(files) != 1 || len(files[0].Services) < 8 {
		t.Fatalf("%d documents", len(files))
	}
	for name, s := range files[0].Services {
		image, _ := s.Image.(string)
		once := name == "topics" || name == "store-init" || s.Entrypoint != nil
		switch {
		case !fixedImage.MatchString(image):
			t.Errorf("%s has the image %q: want a fixed version", name, image)
		case s.Logging.Driver == "":
			t.Errorf("%s has a log without a bound", name)
		case s.Deploy.Resources.Limits.Memory == "" && !once, s.Deploy.Resources.Limits.Pids == "" && !once:
			t.Errorf("%s has no limits for memory and processes", name)
		case len(s.Networks.Content) == 0:
			t.Errorf("%s is in everybody's network", name)
		case s.Restart != "unless-stopped" && !once:
			t.Errorf("%s does not start again after a reboot: restart is %v", name, s.Restart)
		case strings.HasPrefix(image, "spillway") && !s.ReadOnly:
			t.Errorf("%s can write to its image", name)
		}
		for _, port := range s.Ports {
			if !strings.HasPrefix(port, "127.0.0.1:") {
				t.Errorf("%s publishes %s to everybody", name, port)
			}
		}
	}
}

// object is what is looked at of one of Kubernetes.
type object struct {
	Kind     string
	Metadata struct{ Name string }
	Spec     struct {
		Template struct {
			Metadata struct{ Labels map[string]string }
			Spec     struct {
				Automount       *bool `yaml:"automountServiceAccountToken"`
				ServiceLinks    *bool `yaml:"enableServiceLinks"`
				Grace           int   `yaml:"terminationGracePeriodSeconds"`
				SecurityContext struct {
					RunAsNonRoot bool              `yaml:"runAsNonRoot"`
					Seccomp      map[string]string `yaml:"seccompProfile"`
				} `yaml:"securityContext"`
				Containers []struct {
					Args  []string
					Ports []struct {
						ContainerPort int `yaml:"containerPort"`
					}
					StartupProbe   map[string]any `yaml:"startupProbe"`
					ReadinessProbe map[string]any `yaml:"readinessProbe"`
					LivenessProbe  map[string]any `yaml:"livenessProbe"`
					Resources      struct{ Limits map[string]string }
					Security       struct {
						Escalation   *bool `yaml:"allowPrivilegeEscalation"`
						ReadOnly     bool  `yaml:"readOnlyRootFilesystem"`
						Capabilities struct{ Drop []string }
					} `yaml:"securityContext"`
				}
			}
		}
		Replicas    *int
		MinReplicas int                   `yaml:"minReplicaCount"`
		Target      struct{ Name string } `yaml:"scaleTargetRef"`
		Triggers    []struct {
			Type     string
			Metadata map[string]string
		}
		Selector struct {
			MatchLabels map[string]string `yaml:"matchLabels"`
		}
	}
}

// objects are those of all files below a directory of deploy/kubernetes, by kind and name.
func objects(t *testing.T, dir string) map[string]object {
	t.Helper()
	all := make(map[string]object)
	err := filepath.WalkDir(filepath.Join(deployDir, "kubernetes", dir), func(path string, d fs.DirEntry, err error) error {
		if name := d.Name(); err == nil && filepath.Ext(name) == ".yaml" && name != "kustomization.yaml" && name != "spillway.yaml" {
			for _, m := range documents[object](t, path) {
				all[m.Kind+"/"+m.Metadata.Name] = m
			}
		}
		return err
	})
	if err != nil || len(all) == 0 {
		t.Fatalf("%d objects in %s, %v", len(all), dir, err)
	}
	return all
}

// TestKubernetesPods: every pod is as the restricted Pod Security Standard wants it, has probes,
// the time to drain, and a budget for disruptions, and the ports of its service in spillway.yaml.
func TestKubernetesPods(t *testing.T) {
	cfg, err := config.Load(filepath.Join(deployDir, "kubernetes/base/spillway.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	ports := map[string][]string{"buffer": {cfg.Buffer.Listen, cfg.Buffer.HTTP}, "ingest": {cfg.Ingest.Listen, cfg.Ingest.HTTP},
		"delivery-hdfs": {cfg.Delivery["hdfs"].Listen, cfg.Delivery["hdfs"].HTTP}}
	off := func(b *bool) bool { return b != nil && !*b }
	base := objects(t, "base")
	pods := 0
	for name, m := range base {
		if m.Kind != "Deployment" && m.Kind != "StatefulSet" {
			continue
		}
		pods++
		s := m.Spec.Template.Spec
		if !s.SecurityContext.RunAsNonRoot || s.SecurityContext.Seccomp["type"] != "RuntimeDefault" || !off(s.Automount) || !off(s.ServiceLinks) {
			t.Errorf("%s: its pods are not restricted", name)
		}
		if s.Grace < 60 {
			t.Errorf("%s: its pods have %d s to drain", name, s.Grace)
		}
		for _, c := range s.Containers {
			if !off(c.Security.Escalation) || !c.Security.ReadOnly || !slices.Equal(c.Security.Capabilities.Drop, []string{"ALL"}) || c.Resources.Limits["memory"] == "" {
				t.Errorf("%s: its container is not restricted", name)
			}
			if c.StartupProbe == nil || c.ReadinessProbe == nil || c.LivenessProbe == nil {
				t.Errorf("%s: its container lacks a probe", name)
			}
			var got []string
			for _, p := range c.Ports {
				got = append(got, ":"+strconv.Itoa(p.ContainerPort))
			}
			if want := ports[m.Metadata.Name]; !slices.Equal(got, want) {
				t.Errorf("%s: its ports are %q, and spillway.yaml has %q", name, got, want)
			}
			if command := strings.Join(c.Args[:slices.Index(c.Args, "--config")], "-"); command != m.Metadata.Name {
				t.Errorf("%s runs %s", name, command)
			}
		}
		budget := base["PodDisruptionBudget/"+m.Metadata.Name]
		for label, value := range budget.Spec.Selector.MatchLabels {
			if m.Spec.Template.Metadata.Labels[label] != value {
				t.Errorf("%s: its budget is for %s=%s", name, label, value)
			}
		}
		if len(budget.Spec.Selector.MatchLabels) == 0 {
			t.Errorf("%s has no budget for disruptions", name)
		}
	}
	if buffer := base["StatefulSet/buffer"]; pods != 3 || buffer.Spec.Replicas == nil || *buffer.Spec.Replicas != 1 {
		t.Errorf("%d kinds of pods, and the buffer's replicas are %v", pods, buffer.Spec.Replicas)
	}
}

// TestKubernetesScaling: what KEDA scales is there, never goes to zero, and asks for a
// subscription of spillway.yaml.
func TestKubernetesScaling(t *testing.T) {
	base := objects(t, "base")
	for name, m := range objects(t, "components/keda") {
		if _, there := base["Deployment/"+m.Spec.Target.Name]; !there || m.Spec.MinReplicas < 1 || len(m.Spec.Triggers) != 1 {
			t.Errorf("%s scales %q from %d instances by %d triggers", name, m.Spec.Target.Name, m.Spec.MinReplicas, len(m.Spec.Triggers))
			continue
		}
		for _, file := range []string{"base/spillway.yaml", "overlays/production/spillway.yaml"} {
			cfg, err := config.Load(filepath.Join(deployDir, "kubernetes", file))
			if err != nil {
				t.Fatal(err)
			}
			queue, sub, _ := strings.Cut(m.Spec.Triggers[0].Metadata["subscription"], "/")
			if q := cfg.Buffer.Queues[queue]; q == nil || q.Subscriptions[sub] == nil {
				t.Errorf("%s asks for %s, which %s does not have", name, m.Spec.Triggers[0].Metadata["subscription"], file)
			}
		}
	}
}

// TestKubernetesSeveralBuffers: there are as many pods as shards, spillway.yaml has their names,
// and each takes the shard of its number.
func TestKubernetesSeveralBuffers(t *testing.T) {
	dir := filepath.Join(deployDir, "kubernetes/overlays/several-buffers")
	type kustomization struct {
		Replicas []struct {
			Name  string
			Count int
		}
		Patches []struct{ Patch string }
	}
	all := documents[kustomization](t, filepath.Join(dir, "kustomization.yaml"))
	if len(all) != 1 || len(all[0].Replicas) != 1 || all[0].Replicas[0].Name != "buffer" {
		t.Fatalf("%+v", all)
	}
	n := all[0].Replicas[0].Count
	kafka := documents[struct{ Resources []string }](t, filepath.Join(deployDir, "kubernetes/overlays/several-on-kafka/kustomization.yaml"))
	if len(kafka) != 1 || !slices.Equal(kafka[0].Resources, []string{"../several-buffers"}) {
		t.Errorf("several-on-kafka is made of %+v", kafka)
	}
	patches := fmt.Sprint(all[0].Patches)
	const variable = "SPILLWAY_BUFFER__SHARD"
	if !strings.Contains(patches, "{name: "+variable+", valueFrom: {fieldRef: {fieldPath: \"metadata.labels['apps.kubernetes.io/pod-index']\"}}}") {
		t.Errorf("the shard is not that of the pod: %s", patches)
	}
	for shard := range n {
		t.Setenv(variable, strconv.Itoa(shard))
		cfg, err := config.Load(filepath.Join(dir, "spillway.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		if err := cfg.ForBuffer(); err != nil {
			t.Error(err)
		}
		inKafka, err := config.Load(filepath.Join(deployDir, "kubernetes/overlays/several-on-kafka/spillway.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		if q := inKafka.Buffer.Queues["logs"]; q.Store.Kafka == nil || q.Shards != n || inKafka.Buffer.DataDir != "" || inKafka.Buffer.Shard != shard || !slices.Equal(inKafka.Buffers, cfg.Buffers) {
			t.Errorf("pod %d on Kafka: %+v", shard, inKafka.Buffer)
		}
		if cfg.Buffer.Shard != shard || cfg.Buffer.Queues["logs"].Shards != n || len(cfg.Buffers) != n || cfg.Buffers[shard] != fmt.Sprintf("buffer-%d.buffer:7400", shard) {
			t.Errorf("pod %d: shard %d of %d, buffers %q", shard, cfg.Buffer.Shard, cfg.Buffer.Queues["logs"].Shards, cfg.Buffers)
		}
	}
}

// TestKustomize has kubectl put the objects together, where there is one.
func TestKustomize(t *testing.T) {
	kubectl, err := exec.LookPath("kubectl")
	if err != nil {
		t.Skip("NOT RUN: kubectl is not here; make lint has checked the files one by one")
	}
	for _, dir := range []string{"base", "overlays/production", "overlays/several-buffers", "overlays/several-on-kafka"} {
		out, err := exec.Command(kubectl, "kustomize", filepath.Join(deployDir, "kubernetes", dir)).CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte("kind: StatefulSet")) {
			t.Errorf("%s: %v\n%s", dir, err, out)
		}
		if volumes := bytes.Contains(out, []byte("volumeClaimTemplates")); volumes == (dir == "overlays/several-on-kafka") {
			t.Errorf("%s: its buffers have volumes: %v", dir, volumes)
		}
		if secure := bytes.Count(out, []byte("scheme: HTTPS")); secure != 0 && dir != "overlays/production" || secure != 9 && dir == "overlays/production" {
			t.Errorf("%s: %d probes use TLS", dir, secure)
		}
	}
}
