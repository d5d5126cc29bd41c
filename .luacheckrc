-- Redis runs Lua 5.1 with these three globals.
std = "lua51"
read_globals = { "redis", "KEYS", "ARGV" }
max_line_length = 130
