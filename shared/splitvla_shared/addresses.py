"""Addresses to listen on: HOST:PORT as text, and whether only this machine can reach it."""

from __future__ import annotations

import ipaddress

from splitvla_shared.errors import ConfigError


def split_address(listen: str) -> tuple[str, int]:
    """ "127.0.0.1:50051" or "[::1]:50051" to host and port. Raises ConfigError."""
    host, _, port = listen.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not bare or (":" in bare and bare == host) or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"listen is {listen!r}; expected HOST:PORT such as 127.0.0.1:50051 or [::1]:50051")
    return bare, int(port)


def join_address(host: str, port: int) -> str:
    """The opposite of `split_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name: whatever it means today, it may mean a network tomorrow
        return False
