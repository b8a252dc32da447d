package rpc

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// TestUnknownHostIsNamed has the error say which name does not exist.
func TestUnknownHostIsNamed(t *testing.T) {
	conn, err := Dial("nowhere.invalid:7400")
	if err != nil {
		t.Fatal(err)
	}
	_, err = healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{})
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "nowhere.invalid") {
		t.Errorf("error is %v", err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
}
