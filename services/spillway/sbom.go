package main

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"strings"
)

// bom is a software bill of materials in the form of CycloneDX 1.5. It has neither a time nor a
// random number: the same program has the same one.
type bom struct {
	Format      string         `json:"bomFormat"`
	SpecVersion string         `json:"specVersion"`
	Version     int            `json:"version"`
	Metadata    bomMetadata    `json:"metadata"`
	Components  []bomComponent `json:"components"`
}

type bomMetadata struct {
	Component bomComponent `json:"component"`
}

type bomComponent struct {
	Type       string        `json:"type"`
	Name       string        `json:"name"`
	Version    string        `json:"version"`
	PURL       string        `json:"purl"`
	Properties []bomProperty `json:"properties,omitempty"`
}

type bomProperty struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// writeSBOM writes what this program was built of.
func writeSBOM(w io.Writer) error {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return errors.New("this program was built without modules, and does not know what it is made of")
	}
	b := bom{Format: "CycloneDX", SpecVersion: "1.5", Version: 1}
	b.Metadata.Component = component("application", info.Main.Path, version(), "")
	for _, s := range info.Settings {
		b.Metadata.Component.Properties = append(b.Metadata.Component.Properties, bomProperty{"go:build:" + s.Key, s.Value})
	}
	b.Components = append(b.Components, component("library", "std", strings.TrimPrefix(runtime.Version(), "go"), ""))
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		b.Components = append(b.Components, component("library", m.Path, m.Version, m.Sum))
	}
	return printJSON(w, b)
}

// component names a module as package URLs do. The sum is that of go.sum.
func component(kind, path, version, sum string) bomComponent {
	c := bomComponent{Type: kind, Name: path, Version: version, PURL: fmt.Sprintf("pkg:golang/%s@%s", path, version)}
	if sum != "" {
		c.Properties = []bomProperty{{"go:sum", sum}}
	}
	return c
}
