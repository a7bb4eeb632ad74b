package config

import (
	"fmt"
	"path/filepath"
	"strings"
)

func (c *Config) checkImage() error {
	if d := c.Image.PolicyDir; d != "" && !filepath.IsAbs(d) {
		return fmt.Errorf("image.policy_dir must be an absolute path, and is %q", d)
	}
	for _, p := range c.Image.Pinned {
		if strings.Trim(p, "*") == "" || strings.Contains(strings.TrimSuffix(strings.TrimPrefix(p, "*"), "*"), "*") {
			return fmt.Errorf("image.pinned has %q: it must be a name, with * at the beginning, the end or both", p)
		}
	}
	return nil
}
