package rpc

import (
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Domain is ErrorInfo.domain of every error of Spillway.
const Domain = "spillway.io"

// Error is a status with ErrorInfo{reason, Domain} and, when retryAfter is positive, RetryInfo.
// The reason is stable and in UPPER_SNAKE_CASE; the message is for people.
func Error(code codes.Code, reason string, retryAfter time.Duration, format string, args ...any) error {
	st := status.New(code, fmt.Sprintf(format, args...))
	details := []protoadapt.MessageV1{&errdetails.ErrorInfo{Reason: reason, Domain: Domain}}
	if retryAfter > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(retryAfter)})
	}
	detailed, err := st.WithDetails(details...)
	if err != nil { // only when code is OK
		return st.Err()
	}
	return detailed.Err()
}

// Reason is the reason of an Error, also when it came over the wire or is wrapped; "" of others.
func Reason(err error) string {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.Domain == Domain {
			return info.Reason
		}
	}
	return ""
}

// StatusError is the error a status stands for: nil for an absent one and for OK.
func StatusError(st *statuspb.Status) error { return status.ErrorProto(st) }
