"""The wire to the GPU host: typed calls, fresh connections, several servers, TLS; protobuf and grpc stay inside."""
