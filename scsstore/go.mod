module github.com/tombstore/tombstore/scsstore

go 1.26.0

require (
	github.com/alexedwards/scs/v2 v2.9.0
	github.com/redis/rueidis v1.0.79
	github.com/stretchr/testify v1.12.1
	github.com/tombstore/tombstore v0.0.0
)

require (
	go.yaml.in/yaml/v3 v3.0.5 // indirect
	golang.org/x/net v0.60.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
	golang.org/x/text v0.43.0 // indirect
)

replace github.com/tombstore/tombstore => ../
