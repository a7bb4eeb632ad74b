package spec

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/ocid-io/ocid/internal/userdb"
	"github.com/ocid-io/ocid/runtime"
)

// maxGroups is the kernel's NGROUPS_MAX.
const maxGroups = 65536

// ResolveUser finds the identity that a container starts with, and its home
// directory ("" if unknown), from the image's user, the request and the user
// database of the root file system mounted at rootPath.
//
// The request's user replaces the image's, group and all. A user without a
// group gets the primary group of the database, or 0. The primary group is
// always the first of Groups, so that dropping it by setgid tricks gains
// nothing. An unknown name and an id out of range wrap runtime.ErrInvalid.
func ResolveUser(rootPath string, img runtime.ImageConfig, sec runtime.Security) (runtime.ResolvedUser, string, error) {
	ask, err := askedUser(img, sec)
	if err != nil {
		return runtime.ResolvedUser{}, "", err
	}
	users, err := userdb.Users(rootPath)
	if err != nil {
		return runtime.ResolvedUser{}, "", damaged(err)
	}
	groups, err := userdb.Groups(rootPath)
	if err != nil {
		return runtime.ResolvedUser{}, "", damaged(err)
	}
	return resolve(ask, sec, users, groups)
}

// damaged: the image's own database cannot be used, and never will.
func damaged(err error) error {
	return fmt.Errorf("%w: %w", runtime.ErrInvalid, err)
}

// userAsk is a user and a group, each as a name or number; "" leaves it open.
type userAsk struct {
	user, group string
	from        string // for messages
}

func askedUser(img runtime.ImageConfig, sec runtime.Security) (userAsk, error) {
	ask := userAsk{from: "run_as_user"}
	switch {
	case sec.RunAsUser != nil && sec.RunAsUserName != "":
		return ask, invalid("both run_as_user and run_as_username are set")
	case sec.RunAsUser != nil:
		if err := checkID("run_as_user", *sec.RunAsUser); err != nil {
			return ask, err
		}
		ask.user = fmt.Sprint(*sec.RunAsUser)
	case sec.RunAsUserName != "":
		ask.user, ask.from = sec.RunAsUserName, "run_as_username"
		if strings.Contains(ask.user, ":") {
			return ask, invalid("run_as_username %q contains ':'", ask.user)
		}
	case sec.RunAsGroup != nil:
		return ask, invalid("run_as_group is set without run_as_user or run_as_username")
	default:
		return parseImageUser(img.User)
	}
	if sec.RunAsGroup != nil {
		if err := checkID("run_as_group", *sec.RunAsGroup); err != nil {
			return ask, err
		}
		ask.group = fmt.Sprint(*sec.RunAsGroup)
	}
	return ask, nil
}

// parseImageUser reads "", "user" or "user:group".
func parseImageUser(s string) (userAsk, error) {
	user, group, hasGroup := strings.Cut(s, ":")
	if len(s) > 512 || strings.ContainsAny(s, "\n\x00") || !utf8.ValidString(s) || strings.Contains(group, ":") ||
		(hasGroup && (user == "" || group == "")) {
		return userAsk{}, invalid("image user %.64q, want user or user:group", s)
	}
	return userAsk{user: user, group: group, from: "image user"}, nil
}

func checkID(what string, id int64) error {
	if id < 0 || id > userdb.MaxID {
		return invalid("%s %d is not in 0..%d", what, id, int64(userdb.MaxID))
	}
	return nil
}

func resolve(ask userAsk, sec runtime.Security, users []userdb.User, groups []userdb.Group) (runtime.ResolvedUser, string, error) {
	fail := func(err error) (runtime.ResolvedUser, string, error) { return runtime.ResolvedUser{}, "", err }
	u, err := findUser(ask, users)
	if err != nil {
		return fail(err)
	}
	gid := u.GID
	if ask.group != "" {
		if gid, err = findGroup(ask, groups); err != nil {
			return fail(err)
		}
	}
	out := runtime.ResolvedUser{UID: u.UID, GID: gid, Groups: []uint32{gid}}
	switch sec.GroupsPolicy {
	case "", runtime.GroupsMerge:
		for _, g := range groups {
			if g.Has(u.Name) {
				out.Groups = append(out.Groups, g.GID)
			}
		}
	case runtime.GroupsStrict:
	default:
		return fail(invalid("unknown supplemental groups policy %q", sec.GroupsPolicy))
	}
	for _, g := range sec.SupplementalGroups {
		if err := checkID("supplemental group", g); err != nil {
			return fail(err)
		}
		out.Groups = append(out.Groups, uint32(g))
	}
	slices.Sort(out.Groups[1:])
	out.Groups = dedupe(out.Groups)
	if len(out.Groups) > maxGroups {
		return fail(invalid("%d supplemental groups, more than %d", len(out.Groups), maxGroups))
	}
	home := u.Home
	if !path.IsAbs(home) || text("home", home) != nil {
		home = ""
	}
	return out, home, nil
}

// dedupe removes from a list, sorted but for its first element, what is there
// twice.
func dedupe(g []uint32) []uint32 {
	rest := slices.DeleteFunc(slices.Compact(g[1:]), func(x uint32) bool { return x == g[0] })
	return g[:1+len(rest)]
}

// findUser looks ask.user up. Digits are always a number, which need not be in
// the database: an image may hold a user whose name is "1000" and whose id is
// 0, and a client that checked that 1000 is not root must not get root.
func findUser(ask userAsk, users []userdb.User) (userdb.User, error) {
	name := ask.user
	if name == "" {
		name = "0"
	}
	id, number, err := numeric(ask.from, name)
	if err != nil {
		return userdb.User{}, err
	}
	i := slices.IndexFunc(users, func(u userdb.User) bool {
		return number && u.UID == id || !number && u.Name == name
	})
	switch {
	case i >= 0:
		return users[i], nil
	case number:
		return userdb.User{UID: id}, nil
	}
	return userdb.User{}, invalid("%s: no user %q in the image's /etc/passwd", ask.from, name)
}

func findGroup(ask userAsk, groups []userdb.Group) (uint32, error) {
	id, number, err := numeric(ask.from, ask.group)
	if number || err != nil {
		return id, err
	}
	if i := slices.IndexFunc(groups, func(g userdb.Group) bool { return g.Name == ask.group }); i >= 0 {
		return groups[i].GID, nil
	}
	return 0, invalid("%s: no group %q in the image's /etc/group", ask.from, ask.group)
}

// numeric reports whether s is made of digits, and the id that it is then.
func numeric(from, s string) (id uint32, ok bool, err error) {
	if strings.Trim(s, "0123456789") != "" {
		return 0, false, nil
	}
	if id, ok = userdb.ParseID(s); !ok {
		return 0, false, invalid("%s: id %s is not in 0..%d", from, s, int64(userdb.MaxID))
	}
	return id, true, nil
}
