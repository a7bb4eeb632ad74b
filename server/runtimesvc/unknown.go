package runtimesvc

import (
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// warnUnknown logs fields that a newer client sent and this build's CRI does
// not have. Refusing them would stop a node whenever the kubelet is newer;
// passing over them in silence would hide why something has no effect.
func (s *Service) warnUnknown(what string, m protoreflect.Message) {
	unknownFields(m, func(message protoreflect.FullName, field protowire.Number) {
		s.log.Warn("a request has a field that this version does not know; it has no effect",
			"request", what, "message", string(message), "field", int(field))
	})
}

func unknownFields(m protoreflect.Message, found func(protoreflect.FullName, protowire.Number)) {
	for b := m.GetUnknown(); len(b) > 0; {
		num, _, n := protowire.ConsumeField(b)
		if n < 0 {
			break
		}
		found(m.Descriptor().FullName(), num)
		b = b[n:]
	}
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsMap() || fd.Message() == nil: // CRI's maps hold strings only
		case fd.IsList():
			for i := range v.List().Len() {
				unknownFields(v.List().Get(i).Message(), found)
			}
		default:
			unknownFields(v.Message(), found)
		}
		return true
	})
}
