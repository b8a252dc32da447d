package kafkaclient

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"

	"github.com/jcmturner/gokrb5/v8/gssapi"
	"github.com/jcmturner/gokrb5/v8/iana/errorcode"
	"github.com/jcmturner/gokrb5/v8/iana/etypeID"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	"github.com/jcmturner/gokrb5/v8/spnego"
	"github.com/jcmturner/gokrb5/v8/types"
	"github.com/segmentio/kafka-go/sasl"

	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/kerberos"
)

// gssapiMechanism is SASL's GSSAPI with Kerberos 5 (RFC 4752), as Kafka's own clients speak it: it
// authenticates, and leaves encryption to TLS.
//
//	client                                     broker
//	AP-REQ for SERVICE/HOST            ──────▶
//	                                   ◀────── wrap token: the layers it offers
//	wrap token: no layer               ──────▶
//	                                   ◀────── empty: done
type gssapiMechanism struct {
	login   *kerberos.Login
	service string // the first part of the brokers' principals
}

func newGSSAPI(s *config.SASL, log *slog.Logger) gssapiMechanism {
	return gssapiMechanism{service: s.ServiceName,
		login: kerberos.New(kerberos.Config{Principal: s.Principal, Keytab: s.Keytab, Krb5Conf: s.Krb5Conf}, log)}
}

// Name implements sasl.Mechanism.
func (gssapiMechanism) Name() string { return "GSSAPI" }

// Start implements sasl.Mechanism. The broker's principal is of the host that it is connected to:
// a bootstrap address, or what the broker advertises.
func (m gssapiMechanism) Start(ctx context.Context) (sasl.StateMachine, []byte, error) {
	broker := sasl.MetadataFromContext(ctx)
	if broker == nil || broker.Host == "" {
		return nil, nil, errors.New("GSSAPI: the broker's host is not known")
	}
	tickets, err := m.login.Get()
	if tickets == nil {
		return nil, nil, err
	}
	defer m.login.Release(tickets)
	spn := m.service + "/" + broker.Host
	ticket, key, err := tickets.Client.GetServiceTicket(spn)
	if err != nil {
		m.login.Suspect(tickets) // also of a KDC that began anew; the next connection logs in again
		return nil, nil, fmt.Errorf("get a Kerberos ticket for %s (sasl.service_name and the host in the broker's address must make its principal): %w", spn, err)
	}
	if !hasWrapTokens(key.KeyType) {
		return nil, nil, fmt.Errorf("the ticket for %s has a key of type %d; want AES: see permitted_enctypes of krb5.conf, and the keys of the broker's principal", spn, key.KeyType)
	}
	token, err := spnego.NewKRB5TokenAPREQ(tickets.Client, ticket, key, []int{gssapi.ContextFlagInteg}, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("make a Kerberos request for %s: %w", spn, err)
	}
	request, err := token.Marshal()
	if err != nil {
		return nil, nil, fmt.Errorf("make a Kerberos request for %s: %w", spn, err)
	}
	return &gssapiExchange{key: key, suspect: func() { m.login.Suspect(tickets) }}, request, nil
}

// hasWrapTokens says whether a key is of a type whose wrap tokens are those of RFC 4121.
func hasWrapTokens(keyType int32) bool {
	switch keyType {
	case etypeID.AES128_CTS_HMAC_SHA1_96, etypeID.AES256_CTS_HMAC_SHA1_96, etypeID.AES128_CTS_HMAC_SHA256_128, etypeID.AES256_CTS_HMAC_SHA384_192:
		return true
	}
	return false
}

// gssapiExchange is what follows the request, with the ticket's session key.
type gssapiExchange struct {
	key     types.EncryptionKey
	suspect func() // has the next connection begin with a new login
	agreed  bool
}

const (
	noLayer      = 1       // the bit of no security layer
	sealedFlag   = 1 << 1  // of a wrap token whose payload is encrypted
	maxWrapToken = 1 << 16 // bytes; brokers send 32
)

// Refused notes that the broker did not take the ticket: its keytab may be another one by now.
func (x *gssapiExchange) Refused() { x.suspect() }

// Next implements sasl.StateMachine. A token with a good checksum proves that the broker has the
// key of its principal.
func (x *gssapiExchange) Next(_ context.Context, challenge []byte) (done bool, response []byte, err error) {
	if x.agreed {
		if len(challenge) > 0 {
			return false, nil, errors.New("GSSAPI: the broker goes on after the end")
		}
		return true, nil, nil
	}
	offer, err := x.unwrap(challenge)
	if err != nil {
		x.suspect()
		return false, nil, fmt.Errorf("GSSAPI: %w", err)
	}
	if len(offer) != 4 || offer[0]&noLayer == 0 {
		return false, nil, errors.New("GSSAPI: the broker wants a security layer of SASL, which Kafka's clients do not have; want TLS")
	}
	token, err := gssapi.NewInitiatorWrapToken([]byte{noLayer, 0, 0, 0}, x.key)
	if err == nil {
		response, err = token.Marshal()
	}
	if err != nil {
		return false, nil, fmt.Errorf("GSSAPI: make an answer: %w", err)
	}
	x.agreed = true
	return false, response, nil
}

// unwrap returns the payload of a wrap token of the broker's.
func (x *gssapiExchange) unwrap(challenge []byte) ([]byte, error) {
	if len(challenge) > maxWrapToken {
		return nil, fmt.Errorf("the broker's token has %d bytes", len(challenge))
	}
	var token gssapi.WrapToken
	if err := token.Unmarshal(challenge, true); err != nil {
		var answer spnego.KRB5Token
		if answer.Unmarshal(challenge) == nil && answer.IsKRBError() {
			return nil, fmt.Errorf("the broker does not take the ticket: %s %s", errorcode.Lookup(answer.KRBError.ErrorCode), answer.KRBError.EText)
		}
		return nil, fmt.Errorf("read the broker's token: %w", err)
	}
	if token.Flags&sealedFlag != 0 || binary.BigEndian.Uint16(challenge[6:8]) != 0 {
		return nil, errors.New("the broker's token is encrypted or rotated, which nobody asked for")
	}
	if ok, err := token.Verify(x.key, keyusage.GSSAPI_ACCEPTOR_SEAL); err != nil || !ok {
		return nil, errors.New("the broker's token is not made with the ticket's key: it is not the service it claims to be")
	}
	return token.Payload, nil
}
