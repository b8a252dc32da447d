package flume

import (
	"regexp"
	"strings"
)

var jaasUser = regexp.MustCompile(`username\s*=\s*["']?([^"'\s;]+)`)

// security writes TLS and SASL of a client. Secrets do not go into the file: it names files for
// them.
func (c *converter) security(s *Component, n *node, to, prefix string) {
	protocol := strings.ToUpper(s.value(prefix + "security.protocol"))
	s.say(prefix+"security.protocol", Carried, "%s.tls and sasl", to)
	if strings.HasSuffix(protocol, "SSL") {
		t := n.child("tls")
		if s.has(prefix + "ssl.truststore.location") {
			t.text("ca", "/etc/spillway/ca.pem", "keytool -exportcert -rfc -keystore "+s.value(prefix+"ssl.truststore.location")+" -alias ALIAS > ca.pem, for each alias that keytool -list shows")
			s.say(prefix+"ssl.truststore.location", Changed, "%s.tls.ca: a file of PEM; the comment there says how to make it", to)
		}
		if s.has(prefix + "ssl.keystore.location") {
			t.text("cert", "/etc/spillway/tls.crt", "keytool -importkeystore -srckeystore "+s.value(prefix+"ssl.keystore.location")+" -destkeystore k.p12 -deststoretype PKCS12, then openssl pkcs12 -in k.p12 -nokeys -out tls.crt")
			t.text("key", "/etc/spillway/tls.key", "openssl pkcs12 -in k.p12 -nocerts -nodes -out tls.key")
			s.say(prefix+"ssl.keystore.location", Changed, "%s.tls.cert and key: files of PEM; the comments there say how to make them", to)
		}
	}
	for _, k := range s.order {
		if strings.HasPrefix(k.name, prefix+"ssl.") && !k.used {
			s.say(k.name, NotNeeded, "PEM files need no store")
		}
	}
	if !strings.HasPrefix(protocol, "SASL") {
		return
	}
	mechanism := s.value(prefix + "sasl.mechanism")
	if mechanism == "" {
		mechanism = "GSSAPI"
	}
	mechanism = strings.ToUpper(mechanism)
	switch mechanism {
	case "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512":
		x := n.child("sasl")
		x.text("mechanism", mechanism)
		user := "TODO"
		if m := jaasUser.FindStringSubmatch(s.value(prefix + "sasl.jaas.config")); m != nil {
			user = m[1]
		}
		x.text("username", user)
		x.text("secret_file", "/etc/spillway/"+identifier(s.Name)+"-password", "a file with the password of sasl.jaas.config, or of Flume's JAAS file")
		s.say(prefix+"sasl.mechanism", Carried, "%s.sasl.mechanism", to)
		s.say(prefix+"sasl.jaas.config", Changed, "%s.sasl: write the password to the file of secret_file", to)
	case "GSSAPI":
		c.gssapi(s, n.child("sasl"), to, prefix)
	default:
		at := s.first(prefix+"sasl.mechanism", prefix+"security.protocol")
		s.say(at, Unsupported, "SASL mechanism %s: use PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER, GSSAPI or client certificates", mechanism)
		s.say(prefix+"sasl.jaas.config", Unsupported, "belongs to mechanism %s", mechanism)
	}
}

var (
	jaasPrincipal = regexp.MustCompile(`(?i)\bprincipal\s*=\s*["']?([^"'\s;]+)`)
	jaasKeytab    = regexp.MustCompile(`(?i)\bkeytab\s*=\s*["']?([^"'\s;]+)`)
)

// gssapi writes Kerberos, with what the JAAS configuration of the client says. Without one in the
// file it is in the process's, which the import does not see.
func (c *converter) gssapi(s *Component, x *node, to, prefix string) {
	x.text("mechanism", "GSSAPI")
	jaas := s.value(prefix + "sasl.jaas.config")
	principal, keytab := jaasPrincipal.FindStringSubmatch(jaas), jaasKeytab.FindStringSubmatch(jaas)
	if principal != nil && keytab != nil {
		x.text("principal", principal[1])
		x.text("keytab", keytab[1])
		s.say(prefix+"sasl.jaas.config", Carried, "%s.sasl.principal and keytab", to)
		s.say(prefix+"sasl.mechanism", Carried, "%s.sasl.mechanism", to)
	} else {
		x.text("principal", "flume@EXAMPLE.COM", "TODO: the principal of the section KafkaClient in Flume's JAAS file (java.security.auth.login.config)")
		x.text("keytab", "/etc/spillway/flume.keytab", "TODO: the keyTab of that section; a cache of tickets will not do")
		at := s.first(prefix+"sasl.mechanism", prefix+"security.protocol")
		s.say(at, Changed, "%s.sasl: write principal and keytab of the section KafkaClient in Flume's JAAS file there", to)
		s.say(prefix+"sasl.jaas.config", Changed, "%s.sasl: it has no principal and keyTab; write them there", to)
	}
	if name := s.value(prefix + "sasl.kerberos.service.name"); name != "" && name != "kafka" {
		x.text("service_name", name)
	}
	s.say(prefix+"sasl.kerberos.service.name", Carried, "%s.sasl.service_name", to)
}
