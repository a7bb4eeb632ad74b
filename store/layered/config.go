package layered

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ocid-io/ocid/store"
)

// maxConfig bounds an image config.
const maxConfig = 4 << 20

// parseConfig reads an image config whose digest must be hex. Times that make
// no sense are dropped, everything else that does not parse is damage.
func parseConfig(data []byte, hex string) (ocispec.Image, time.Time, error) {
	var cfg ocispec.Image
	if len(data) > maxConfig {
		return cfg, time.Time{}, fmt.Errorf("config of %d bytes: %w", len(data), store.ErrDamaged)
	}
	if digest.FromBytes(data).Encoded() != hex {
		return cfg, time.Time{}, fmt.Errorf("config does not match its digest: %w", store.ErrDamaged)
	}
	if err := json.Unmarshal(data, &cfg); err != nil {
		var loose map[string]json.RawMessage
		if json.Unmarshal(data, &loose) != nil {
			return ocispec.Image{}, time.Time{}, fmt.Errorf("config: %w: %w", store.ErrDamaged, err)
		}
		// History is for people, and its times are as free as created.
		delete(loose, "created")
		delete(loose, "history")
		cfg = ocispec.Image{}
		again, merr := json.Marshal(loose)
		if merr != nil || json.Unmarshal(again, &cfg) != nil {
			return ocispec.Image{}, time.Time{}, fmt.Errorf("config: %w: %w", store.ErrDamaged, err)
		}
	}
	var created time.Time
	if cfg.Created != nil {
		created = *cfg.Created
	}
	return cfg, created, nil
}
