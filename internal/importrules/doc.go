// Package importrules holds the test of who may import whom. The rules keep the
// layers apart, so that each can be used, replaced and worked on alone; they
// hold over transitive imports.
package importrules
