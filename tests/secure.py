"""A real broker behind locks: TLS, mutual TLS, SASL, permissions, and certificates of its own."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path

import trustme
from cryptography.hazmat.primitives import serialization as pem
from kafka.admin import (
    ACL,
    ACLFilter,
    ACLOperation,
    ACLPermissionType,
    ResourcePattern,
    ResourceType,
    ScramMechanism,
    UserScramCredentialDeletion,
)

from tests.broker import Broker, free_ports

HOST = "127.0.0.1"
LISTENERS = {
    "SSL": "SSL",
    "SASL_SSL": "SASL_SSL",
    "SASL_PLAINTEXT": "SASL_PLAINTEXT",
    "FOREIGN": "SSL",
    "MOVED": "SSL",
    "GONE": "PLAINTEXT",
}
"""Listener -> how it speaks."""
PASSWORDS = {"engine": "correct-Horse/battery+staple=9", "reader": "only-reads"}
"""Of the SASL users: engine may do everything, reader what a test allows."""
EXPIRED = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
MORE = """
ssl.keystore.type=PEM
ssl.keystore.location={folder}/server.pem
ssl.truststore.type=PEM
ssl.truststore.location={folder}/ca.pem
ssl.principal.mapping.rules=RULE:^CN=([^,]+),.*$/$1/,DEFAULT
listener.name.ssl.ssl.client.auth=required
listener.name.foreign.ssl.keystore.type=PEM
listener.name.foreign.ssl.keystore.location={folder}/elsewhere.pem
listener.name.moved.ssl.keystore.type=PEM
listener.name.moved.ssl.keystore.location={folder}/localhost.pem
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
listener.name.sasl_plaintext.sasl.enabled.mechanisms=SCRAM-SHA-512
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS;User:engine
"""
PLAIN = "org.apache.kafka.common.security.plain.PlainLoginModule"
SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule"


class SecureBroker(Broker):
    """One with further listeners. Everybody may do everything on the plain one, which
    `bootstrap_servers` names; elsewhere `PASSWORDS` and the common name of a client's certificate
    say who one is.

    Attributes:
        at: listener -> where clients find it. SSL wants a client's certificate; SASL_SSL takes
            PLAIN and SCRAM; SASL_PLAINTEXT takes SCRAM-SHA-512 only; FOREIGN shows a certificate
            for another host; MOVED is reached as localhost, which its certificate is for, and
            sends clients on to 127.0.0.1, which it is not for. GONE sends them to a port where
            nobody is.
        ca: file with the certificate that the broker's are signed by.
        clients: name -> (certificate, key) files: ``engine``; ``expired``; ``foreign``, signed by
            somebody else.
        other_ca: that somebody's.
    """

    def __init__(self, folder: Path) -> None:
        self.at = {
            name: f"{HOST}:{port}"
            for name, port in zip(LISTENERS, free_ports(len(LISTENERS)), strict=True)
        }
        self.ca, self.other_ca = folder / "ca.pem", folder / "other-ca.pem"
        self.clients = {
            name: (folder / f"{name}.pem", folder / f"{name}.key")
            for name in ("engine", "expired", "foreign")
        }
        self._certificates(folder)
        super().__init__(folder)
        self.at["MOVED"] = self.at["MOVED"].replace(HOST, "localhost")

    def allow(self, operation: ACLOperation, kind: ResourceType, name: str) -> None:
        """Let reader do so."""
        admin = self.admin()
        admin.create_acls(
            [
                ACL(
                    principal="User:reader",
                    host="*",
                    operation=operation,
                    permission_type=ACLPermissionType.ALLOW,
                    resource_pattern=ResourcePattern(kind, name),
                )
            ]
        )
        admin.close()

    def forbid(self, kind: ResourceType, name: str) -> None:
        """Take back what reader was let do."""
        admin = self.admin()
        admin.delete_acls(
            [
                ACLFilter(
                    principal="User:reader",
                    host="*",
                    operation=ACLOperation.ANY,
                    permission_type=ACLPermissionType.ANY,
                    resource_pattern=ResourcePattern(kind, name),
                )
            ]
        )
        admin.close()

    def forget(self, user: str) -> None:
        """Delete a user's SCRAM credentials."""
        admin = self.admin()
        for kind in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512):
            admin.alter_user_scram_credentials([UserScramCredentialDeletion(user, kind)])
        admin.close()

    def _certificates(self, folder: Path) -> None:
        ca, other = trustme.CA(), trustme.CA()
        ca.cert_pem.write_to_path(self.ca)
        other.cert_pem.write_to_path(self.other_ca)
        for name, host in (("server", HOST), ("elsewhere", "example.org"), ("localhost",) * 2):
            made = ca.issue_cert(host, common_name="broker")
            (folder / f"{name}.pem").write_bytes(_key(made) + _chain(made))
        for name, (cert, key) in self.clients.items():
            signer = other if name == "foreign" else ca
            until = EXPIRED if name == "expired" else None
            begin = None if until is None else until - datetime.timedelta(days=30)
            made = signer.issue_cert(
                "client.example.org", common_name="engine", not_before=begin, not_after=until
            )
            cert.write_bytes(_chain(made))
            key.write_bytes(_key(made))
            key.chmod(0o600)

    def _properties(self, text: str) -> str:
        more = "".join(f",{name}://{at}" for name, at in self.at.items())
        sent_on = more.replace(self.at["GONE"], f"{HOST}:1")
        kinds = "".join(f",{name}:{kind}" for name, kind in LISTENERS.items())
        lines = []
        for line in text.splitlines():
            if line.startswith("listeners="):
                line += more
            if line.startswith("advertised.listeners="):
                line += sent_on
            if line.startswith("listener.security.protocol.map="):
                line += kinds
            lines.append(line)
        lines += [MORE.format(folder=self.folder), *_jaas()]
        return "\n".join(lines) + "\n"

    def _formatted_with(self) -> list[str]:
        return [
            word
            for user, password in PASSWORDS.items()
            for kind in ("SCRAM-SHA-256", "SCRAM-SHA-512")
            for word in ("--add-scram", f"{kind}=[name={user},password={password}]")
        ]


def _jaas() -> Iterator[str]:
    users = " ".join(f'user_{user}="{password}"' for user, password in PASSWORDS.items())
    for listener in ("sasl_ssl", "sasl_plaintext"):
        name = f"listener.name.{listener}"
        yield f"{name}.plain.sasl.jaas.config={PLAIN} required {users};"
        for kind in ("scram-sha-256", "scram-sha-512"):
            yield f"{name}.{kind}.sasl.jaas.config={SCRAM} required;"


def _key(made: trustme.LeafCert) -> bytes:
    """The private key as PKCS #8, the one form that Kafka reads."""
    key = pem.load_pem_private_key(made.private_key_pem.bytes(), None)
    return key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption())


def _chain(made: trustme.LeafCert) -> bytes:
    return b"".join(blob.bytes() for blob in made.cert_chain_pems)


__all__ = ["PASSWORDS", "SecureBroker"]
