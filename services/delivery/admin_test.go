package delivery

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/config"
)

// fakeFiles is a sink that writes files.
type fakeFiles struct {
	fakeSink
	files []*spillwayv1.OpenFile
	err   error
}

func (f *fakeFiles) OpenFiles() []*spillwayv1.OpenFile { return slices.Clone(f.files) }

func (f *fakeFiles) RollFiles(_ context.Context, prefix string) ([]string, error) {
	var rolled []string
	for _, file := range f.files {
		if strings.HasPrefix(file.FinalPath, prefix) {
			rolled = append(rolled, file.FinalPath)
		}
	}
	return rolled, f.err
}

func TestAdminPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := runService(t, &config.Delivery{Kafka: &config.Kafka{}}, &fakeSink{serve: ackAll}, nil)
		a := &admin{s: r.Service}
		stream := r.stream(t)
		resp, err := a.PauseDelivery(t.Context(), nil)
		if err != nil || !resp.Delivery.Paused {
			t.Fatalf("got %v, %v", resp, err)
		}
		stream.lease(none(1, "v"))
		synctest.Wait()
		got, err := a.GetDelivery(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if d := got.Delivery; d.Leases != 1 || d.Records != 0 || d.Kind != "kafka" || d.Name != "d" || d.Subscription != "q/s" || d.Consumer != "me" {
			t.Errorf("paused: %v", d)
		}

		// The pause outlives the session.
		stream.end <- status.Error(codes.Unavailable, "restart")
		stream = <-r.fake.streams
		stream.t = t
		synctest.Wait()
		if len(stream.requests) != 0 {
			t.Errorf("the paused client said %v", <-stream.requests)
		}
		resumed, err := a.ResumeDelivery(t.Context(), nil)
		if err != nil || resumed.Delivery.Paused {
			t.Fatalf("got %v, %v", resumed, err)
		}
		stream.credit()
	})
}

// TestPauseIsKept has the buffer keep a pause: it is asked over the session, and its word counts,
// at the begin of a session too.
func TestPauseIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := runServiceWith(t, &config.Delivery{Kafka: &config.Kafka{}}, &fakeSink{serve: ackAll}, func(f *fakeBuffer) { f.keeps, f.paused = true, true })
		a := &admin{s: r.Service}
		stream := <-r.fake.streams
		stream.t = t
		if stream.open.Delivery != "d" {
			t.Errorf("the delivery is called %q", stream.open.Delivery)
		}
		synctest.Wait()
		if len(stream.requests) != 0 {
			t.Errorf("the paused client said %v", <-stream.requests)
		}
		if d := r.status(); !d.Paused {
			t.Errorf("%v", d)
		}
		say := func(paused bool) {
			stream.send(&spillwayv1.ConsumeResponse{Message: &spillwayv1.ConsumeResponse_Paused{Paused: &spillwayv1.DeliveryPaused{Paused: paused}}})
			synctest.Wait()
		}
		answered := make(chan *spillwayv1.ResumeDeliveryResponse, 1)
		go func() {
			got, err := a.ResumeDelivery(t.Context(), nil)
			if err != nil {
				t.Error(err)
			}
			answered <- got
		}()
		if m := stream.next(); m.GetPause() == nil || m.GetPause().Paused {
			t.Fatalf("the client said %v", m)
		}
		synctest.Wait()
		if len(answered) != 0 {
			t.Fatal("it was resumed before the buffer said so")
		}
		say(false)
		if got := <-answered; !got.Kept || got.Delivery.Paused {
			t.Errorf("%v", got)
		}
		stream.credit()
		say(true) // as another instance asked
		stream.lease(none(1, "v"))
		synctest.Wait()
		if d := r.status(); !d.Paused || d.Leases != 1 || d.Records != 0 {
			t.Errorf("%v", d)
		}
	})
}

// TestPauseWithoutABuffer says that nothing was kept.
func TestPauseWithoutABuffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := runService(t, &config.Delivery{Kafka: &config.Kafka{}}, &fakeSink{serve: ackAll}, func() error { return status.Error(codes.Unavailable, "away") })
		a := &admin{s: r.Service}
		if got, err := a.PauseDelivery(t.Context(), nil); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "0 of 1 shards") {
			t.Errorf("got %v, %v", got, err)
		}
		if r.status().Paused {
			t.Error("it is paused")
		}
	})
}

func TestAdminFiles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := &fakeFiles{fakeSink: fakeSink{serve: ackAll}, files: []*spillwayv1.OpenFile{
			{InUsePath: "/b.tmp", FinalPath: "/b"}, {InUsePath: "/a.tmp", FinalPath: "/a"}, {InUsePath: "/c.tmp", FinalPath: "/c"}}}
		r := runService(t, &config.Delivery{HDFS: &config.HDFS{URL: "file:///tmp"}}, sink, nil)
		a := &admin{s: r.Service}
		if d := r.status(); d.Kind != "file" || d.OpenFiles != 3 {
			t.Errorf("status is %v", d)
		}
		var paths []string
		for token := ""; ; {
			page, err := a.ListOpenFiles(t.Context(), &spillwayv1.ListOpenFilesRequest{PageSize: 2, PageToken: token})
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range page.Files {
				paths = append(paths, f.FinalPath)
			}
			if token = page.NextPageToken; token == "" {
				break
			}
		}
		if !slices.Equal(paths, []string{"/a", "/b", "/c"}) {
			t.Errorf("listed %v", paths)
		}
		rolled, err := a.RollFiles(t.Context(), &spillwayv1.RollFilesRequest{FinalPathPrefix: "/b"})
		if err != nil || !slices.Equal(rolled.FinalPaths, []string{"/b"}) {
			t.Errorf("rolled %v, %v", rolled, err)
		}
		sink.err = errors.New("no space")
		if _, err := a.RollFiles(t.Context(), &spillwayv1.RollFilesRequest{}); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "3 became final") {
			t.Errorf("got %v", err)
		}
	})
}

func TestAdminHasNoFilesOfKafka(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := runService(t, &config.Delivery{Kafka: &config.Kafka{}}, &fakeSink{serve: ackAll}, nil)
		a := &admin{s: r.Service}
		_, listErr := a.ListOpenFiles(t.Context(), &spillwayv1.ListOpenFilesRequest{})
		_, rollErr := a.RollFiles(t.Context(), &spillwayv1.RollFilesRequest{})
		for _, err := range []error{listErr, rollErr} {
			if status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), `delivery "d" writes to kafka, not to files`) {
				t.Errorf("got %v", err)
			}
		}
	})
}
