"""Settings of `serve`, and what their values mean: the address, and who may connect."""

from __future__ import annotations

import dataclasses
import errno
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import grpc

from splitvla_shared.addresses import bound_socket, is_loopback, split_address
from splitvla_shared.bundle import Bundle
from splitvla_shared.errors import ConfigError
from splitvla_shared.tls import read_tls

# In a cloud bundle's `extra`: the precision that its weights are stored in, where `split --precision` quantised them.
PRECISION_KEY = "precision"


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """bundle: the cloud half of a split. queue_limit: frames that may wait for the GPU.

    max_batch: robots served at once.
    hang_s: a forward pass that takes longer makes the server say NOT_SERVING until it ends.

    precision: "auto" is what `split` quantised the bundle to, otherwise bf16.
    engine: "torch" is ours; "vllm" needs the extra of that name.
    decode: "greedy" picks from the whole vocabulary, as the reference does; "action-only" from the action ids alone, so
    that an answer can neither end early nor hold another id.
    threads: of the CPU's arithmetic, none = torch's own choice.
    bind_wait_s: 0 binds at once, so that health answers while the model loads; more loads first and then waits that
    long for a port that another process still holds. drain_s: time that robots have to leave after SIGTERM.
    tls_*: PEM files, all three or none; clients must then hold a certificate of `tls_client_ca`.
    """

    bundle: Path | None = None
    precision: Literal["auto", "fp32", "bf16", "int8", "nf4", "fp8", "int4"] = "auto"
    engine: Literal["torch", "vllm"] = "torch"
    decode: Literal["greedy", "action-only"] = "greedy"
    listen: str = "127.0.0.1:50051"
    device: str = "auto"
    threads: int | None = None
    queue_limit: int = 32
    max_batch: int = 8
    hang_s: float = 10.0
    drain_s: float = 2.0
    bind_wait_s: float = 0.0
    insecure_lab: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.queue_limit <= 1024:
            raise ConfigError(f"queue_limit is {self.queue_limit}; expected 1..1024")
        if not 1 <= self.max_batch <= 64:
            raise ConfigError(f"max_batch is {self.max_batch}; expected 1..64 robots")
        if not 0 < self.hang_s <= 3600:
            raise ConfigError(f"hang_s is {self.hang_s}; expected more than 0 and at most 3600 seconds")
        if self.threads is not None and not 1 <= self.threads <= 1024:
            raise ConfigError(f"threads is {self.threads}; expected 1..1024")
        for name in ("drain_s", "bind_wait_s"):
            if not 0 <= getattr(self, name) <= 3600:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 0..3600 seconds")

    def resolved(self, bundle: Bundle) -> ServerSettings:
        """The same settings with what "auto" means for this bundle."""
        if self.precision != "auto":
            return self
        return dataclasses.replace(self, precision=bundle.extra.get(PRECISION_KEY, "bf16"))

    @property
    def numerics(self) -> str:
        """For people: "bf16", or "bf16, action-only" where the answers are not the reference's."""
        return self.precision if self.decode == "greedy" else f"{self.precision}, {self.decode}"


def port_is_taken(host: str, port: int) -> bool:
    """Ask with a socket of our own, because gRPC only says that binding failed.

    Raises ConfigError when the address can't be bound at all.
    """
    try:
        bound_socket(host, port).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return True
        raise ConfigError(f"can't listen on {host}:{port}: {error.strerror or error}; choose another") from error
    return False


def credentials(settings: ServerSettings) -> grpc.ServerCredentials | None:
    """Mutual TLS where it is configured, None for plain text.

    Raises ConfigError when only some of the files are given, one can't be read, or plain text would serve a network.
    """
    files = {name: getattr(settings, name) for name in ("tls_cert", "tls_key", "tls_client_ca")}
    missing = [name for name, path in files.items() if path is None]
    if not missing:
        cert, key, client_ca = read_tls(files["tls_cert"], files["tls_key"], files["tls_client_ca"], "tls_client_ca")
        return grpc.ssl_server_credentials([(key, cert)], root_certificates=client_ca, require_client_auth=True)
    if len(missing) < len(files):
        raise ConfigError(f"mutual TLS needs tls_cert, tls_key and tls_client_ca; {' and '.join(missing)} is missing")
    host, _ = split_address(settings.listen)
    if not is_loopback(host) and not settings.insecure_lab:
        raise ConfigError(
            f"{settings.listen} can be reached from the network and has no TLS: anybody there could move the robot; "
            "give tls_cert, tls_key and tls_client_ca, listen on 127.0.0.1, or set insecure_lab in a closed lab"
        )
    return None
