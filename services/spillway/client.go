package main

import (
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/security"
)

// clientFlags say what a command shows to the services that it calls. They come before what a
// file or a context says.
type clientFlags struct{ config.SecurityClient }

// clientFlagList has the flags with what they set.
var clientFlagList = []struct {
	name, usage string
	file        bool // its value is a path
	of          func(*config.SecurityClient) *string
}{
	{"token-file", "file with the token to show", true, func(c *config.SecurityClient) *string { return &c.TokenFile }},
	{"ca", "file of the authorities whose certificates the service may have (PEM); turns TLS on", true, func(c *config.SecurityClient) *string { return &c.CA }},
	{"cert", "file of the client certificate to show (PEM)", true, func(c *config.SecurityClient) *string { return &c.Cert }},
	{"key", "file of its key (PEM)", true, func(c *config.SecurityClient) *string { return &c.Key }},
	{"server-name", "what the service's certificate must be for; empty is the host that is called", false, func(c *config.SecurityClient) *string { return &c.ServerName }},
}

// register adds the flags to cmd and its subcommands.
func (f *clientFlags) register(cmd *cobra.Command) {
	for _, x := range clientFlagList {
		cmd.PersistentFlags().StringVar(x.of(&f.SecurityClient), x.name, "", x.usage)
	}
}

// client is what calls the services; s is what is shown where no flag says otherwise.
func (f *clientFlags) client(s config.Security) (*security.Security, error) {
	for _, x := range clientFlagList {
		if value := *x.of(&f.SecurityClient); value != "" {
			*x.of(&s.Client) = value
		}
	}
	client, err := security.NewClient(&s, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, &usageError{err}
	}
	return client, nil
}
