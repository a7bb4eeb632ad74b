// Command images makes the test images and, with -listen, serves them until it
// is interrupted.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"

	"github.com/ocid-io/ocid/test/images"
	"github.com/ocid-io/ocid/test/registry"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

func run() error {
	cache := flag.String("cache", ".cache/images", "directory of the image layouts")
	big := flag.Bool("big", false, "make the big image for the pull benchmark too")
	digest := flag.Bool("digest", false, "print the digest of critest's test-image-digest")
	listen := flag.String("listen", "", "serve the images on this address")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()

	set, err := images.Set(ctx, *cache, os.Stderr)
	if err != nil {
		return err
	}
	layouts := []string{set}
	if *big {
		d, err := images.Big(ctx, *cache, os.Stderr)
		if err != nil {
			return err
		}
		layouts = append(layouts, d)
	}
	if *digest {
		h, err := images.Digest(set, images.DigestRepo+":latest")
		if err != nil {
			return err
		}
		fmt.Println(h)
	}
	if *listen == "" {
		return nil
	}
	r, err := registry.Start(*listen, layouts...)
	if err != nil {
		return err
	}
	defer r.Close()
	fmt.Fprintln(os.Stderr, "images: serving on", r.Addr())
	<-ctx.Done()
	return nil
}
