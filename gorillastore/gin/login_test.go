package ginstore_test

import (
	"testing"
	"time"

	"github.com/gin-contrib/sessions"
	"github.com/gin-gonic/gin"
	"github.com/stretchr/testify/require"

	"github.com/tombstore/tombstore"
)

// What a login does, and a log out everywhere, in every library is in ../../integration/login_test.go.

func (v *visitor) login(s sessions.Session, c *gin.Context, user string) {
	login, err := v.memory.BeginLogin(c.Request.Context(), user)
	require.NoError(v, err)
	require.NoError(v, v.store.Login(c, s, login, tombstore.Until(time.Now().Add(time.Hour))))
}

func (v *visitor) owned(user string, n int) {
	v.Helper()
	all, err := v.memory.Sessions(v.Context(), user)
	require.NoError(v, err)
	require.Len(v, all, n)
}

// gin saves nothing that was not changed, and a login is a change.
func TestLogin_NothingToSet(t *testing.T) {
	v := newVisitor(t)
	require.Len(t, v.visit(func(s sessions.Session, c *gin.Context) {
		v.login(s, c, "alice")
		require.NoError(t, s.Save())
	}), 1)
	v.owned("alice", 1)
	require.Len(t, v.visit(func(s sessions.Session, c *gin.Context) {
		_, err := v.store.LogoutEverywhere(c, s, "alice")
		require.NoError(t, err)
		require.NoError(t, s.Save())
	}), 1)
	v.owned("alice", 1)
	v.cookie = nil // and without a session there is none to renew
	require.Empty(t, v.visit(func(s sessions.Session, c *gin.Context) {
		_, err := v.store.LogoutEverywhere(c, s, "alice")
		require.NoError(t, err)
		require.NoError(t, s.Save())
	}))
	v.owned("alice", 0)
}

// A login that clears the session of whoever was there is no logout.
func TestLogin_Cleared(t *testing.T) {
	v := newVisitor(t)
	for _, user := range []string{"bob", "alice"} {
		v.visit(func(s sessions.Session, c *gin.Context) {
			s.Clear()
			v.login(s, c, user)
			s.Set("user", user)
			require.NoError(t, s.Save())
		})
	}
	v.owned("alice", 1)
	v.owned("bob", 0)
	v.visit(func(s sessions.Session, _ *gin.Context) { require.Equal(t, "alice", s.Get("user")) })
}
