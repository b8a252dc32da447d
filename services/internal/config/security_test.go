package config

import (
	"strings"
	"testing"
)

func TestGrants(t *testing.T) {
	for _, bad := range []string{"", "append", "append:", "append:a/b", "consume", "consume:q", "consume:a/b/c", "read:", "root", "Admin", "read:a b", "admin ", "**", "consume:*/", "tap:/x", "read:q\n"} {
		if g, err := ParseGrant(bad); err == nil {
			t.Errorf("%q is taken as %+v", bad, g)
		}
	}
	for _, test := range []struct {
		grant, role, object string
		want                bool
	}{
		{"*", RoleAdmin, "q", true}, {"*", RoleAppend, "", true},
		{"append:q", RoleAppend, "q", true}, {"append:q", RoleAppend, "qq", false}, {"append:q", RoleAppend, "", false},
		{"append:*", RoleAppend, "q", true}, {"append:*", RoleConsume, "q/s", false}, {"append:q", RoleRead, "q", false},
		{"consume:q/s", RoleConsume, "q/s", true}, {"consume:q/s", RoleConsume, "q/t", false}, {"consume:q/s", RoleConsume, "q", false},
		{"consume:q/*", RoleConsume, "q/t", true}, {"consume:q/*", RoleConsume, "r/t", false}, {"consume:*/s", RoleConsume, "r/s", true},
		{"consume:*/s", RoleConsume, "r/t", false}, {"consume:*", RoleConsume, "r/t", true}, {"consume:q/s", RoleConsume, "q/s/x", false},
		{"read", RoleRead, "", true}, {"read", RoleRead, "q/s", true}, {"read", RoleOperate, "q/s", false}, {"read", RoleTap, "q/s", false},
		{"read:q", RoleRead, "q/s", true}, {"read:q", RoleRead, "q", true}, {"read:q", RoleRead, "", false}, {"read:q", RoleRead, "r/s", false},
		{"operate", RoleRead, "", true}, {"operate", RoleAdmin, "q", false}, {"operate:q/s", RoleOperate, "q/s", true}, {"operate:q/s", RoleOperate, "q", false},
		{"admin", RoleOperate, "q/s", true}, {"admin", RoleRead, "", true}, {"admin", RoleTap, "q/s", false}, {"admin", RoleAppend, "q", false}, {"admin", RoleConsume, "q/s", false},
		{"tap:q/s", RoleTap, "q/s", true}, {"tap", RoleTap, "q/s", true}, {"tap", RoleRead, "q/s", false},
	} {
		g, err := ParseGrant(test.grant)
		if err != nil {
			t.Error(err)
			continue
		}
		if got := g.Allows(test.role, test.object); got != test.want {
			t.Errorf("%s allows %s on %q: %v", test.grant, test.role, test.object, got)
		}
	}
}

func TestGrantsOfStreams(t *testing.T) {
	for grant, queues := range map[string]string{"*": "q r", "append:q": "q", "append:*": "q r", "consume:q/s": "q", "consume:*/s": "q r", "consume:*": "q r",
		"read": "", "operate:q": "", "admin": "", "tap:q": ""} {
		g, err := ParseGrant(grant)
		if err != nil {
			t.Fatal(err)
		}
		for _, queue := range []string{"q", "r"} {
			if got, want := g.Streams(queue), strings.Contains(queues, queue); got != want {
				t.Errorf("%s is for streams of %s: %v", grant, queue, got)
			}
		}
		if g.Streams("") != (queues == "q r") {
			t.Errorf("%s is for streams of all queues: %v", grant, g.Streams(""))
		}
	}
}

// TestOnThisMachine: without the section nothing leaves the machine, and what to do is said once.
func TestOnThisMachine(t *testing.T) {
	const tls = "tls: {cert: /c, key: /k, ca: /ca}, identities: [{name: n, roles: [read]}]"
	for text, want := range map[string]string{
		"": "",
		"buffer: {listen: \"localhost:1\", http: \"127.0.0.1:2\"}":                           "",
		"buffer: {listen: \"[::1]:1\", http: \"127.1.2.3:2\"}":                               "",
		"buffer: {listen: \":1\"}":                                                           "buffer.listen (:1)",
		"buffer: {listen: \"0.0.0.0:1\", http: \"[::]:2\"}":                                  "buffer.listen (0.0.0.0:1), buffer.http ([::]:2)",
		"ingest: {http: \"10.0.0.1:1\"}":                                                     "ingest.http (10.0.0.1:1)",
		"ingest: {listen: \"localhost.example.com:1\"}":                                      "ingest.listen (localhost.example.com:1)",
		"buffers: [\"buffer:7400\"]":                                                         "buffers[0] (buffer:7400)",
		"buffers: [\"buffer:7400\"]\nsecurity: {insecure: true}":                             "",
		"buffers: [\"buffer:7400\"]\nsecurity: {client: {ca: /ca}}":                          "",
		"buffers: [\"buffer:7400\"]\nsecurity: {client: {token_file: /t}}":                   "buffers[0] (buffer:7400)",
		"buffer: {listen: \":1\"}\nsecurity: {tokens: [{name: a, file: /t, roles: [read]}]}": "buffer.listen (:1)",
		"buffer: {listen: \":1\"}\nsecurity: {" + tls + "}":                                  "",
		"buffer: {listen: \":1\"}\nsecurity: {insecure: true}":                               "",
		"buffer: {listen: \":1\"}\nsecurity: {insecure: false}":                              "buffer.listen (:1)",
	} {
		_, err := Parse("f.yaml", []byte(text), nil)
		switch {
		case want == "" && err != nil:
			t.Errorf("%s: %v", text, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want+";") || !strings.Contains(err.Error(), "insecure: true") || strings.Count(err.Error(), "\n") > 0):
			t.Errorf("%s: %v; want %s", text, err, want)
		}
	}
	for text, want := range map[string]string{"": "localhost:7400", "security: {insecure: true}": ":7400", "security: {" + tls + "}": ":7400", "buffer: {listen: \"127.0.0.1:1\"}\nsecurity: {insecure: true}": "127.0.0.1:1"} {
		c, err := Parse("f.yaml", []byte(text), nil)
		if err != nil || c.Buffer.Listen != want {
			t.Errorf("%q: %v, %v; want %s", text, c, err, want)
		}
	}
}

// TestSecuritySection: what cannot work, or protects nothing, is refused with what is right.
func TestSecuritySection(t *testing.T) {
	const tls = "tls: {cert: /c, key: /k, ca: /ca}"
	for section, want := range map[string]string{
		tls + ", tokens: [{name: a, file: /t, roles: [admin, \"append:q\"]}]": "",
		tls:                               "security: has no tokens, oidc or identities",
		tls + ", insecure: true":          "",
		"tls: {cert: /c}, insecure: true": "security.tls.key: is missing; want the file",
		"tls: {cert: /c, key: /k, client_auth: require}, insecure: true":                               "security.tls.ca: is missing",
		"tls: {cert: /c, key: /k}, identities: [{name: n, roles: [read]}]":                             "security.tls.ca: is missing",
		"tls: {cert: /c, key: /k, ca: /ca, client_auth: none}, identities: [{name: n, roles: [read]}]": "security.identities: are of client certificates",
		"identities: [{name: n, roles: [read]}]":                                                       "security.identities: are of client certificates",
		"tokens: [{file: /t, roles: [read]}]":                                                          "security.tokens[0].name: is missing; want a name",
		"tokens: [{name: a, roles: [read]}]":                                                           "security.tokens[0].file: is missing; want a file with one token a line",
		"tokens: [{name: a, file: /t}]":                                                                "security.tokens[0].roles: is missing; want roles",
		"tokens: [{name: a, file: /t, roles: [reed]}]":                                                 "security.tokens[0].roles[0]: bad role",
		"tokens: [{name: a, file: /t, roles: [read]}, {name: a, file: /u, roles: [tap]}]":              "is there twice",
		"tokens: [{name: a, token: canary, roles: [read]}]":                                            "unknown key \"token\"",
		tls + ", oidc: {issuer: i, audience: a}":                                                       "wants one of jwks_file and jwks_url",
		tls + ", oidc: {issuer: i, audience: a, jwks_file: /j, jwks_url: \"https://i\"}":               "wants one of jwks_file and jwks_url",
		tls + ", oidc: {issuer: i, audience: a, jwks_url: \"http://issuer/keys\"}":                     "jwks_url: malformed",
		tls + ", oidc: {issuer: i, audience: a, jwks_url: \"http://localhost:1/keys\"}":                "",
		tls + ", oidc: {issuer: i, jwks_file: /j}":                                                     "audience: is missing",
		"client: {cert: /c}": "security.client: has one of cert and key",
	} {
		_, err := Parse("f.yaml", []byte("security: {"+section+"}"), nil)
		if (want == "") != (err == nil) || want != "" && !strings.Contains(err.Error(), want) || err != nil && strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v; want %q", section, err, want)
		}
	}
}
