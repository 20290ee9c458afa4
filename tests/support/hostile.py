"""What a caller with bad intentions writes where a URL, a name or a path is expected."""

from __future__ import annotations

GOOD = "https://good.example/x.safetensors"
"""Resolves to a public address, at which nobody answers here."""

NAMES = {
    "good.example": [["93.184.215.14"]],
    "private.example": [["10.1.2.3"]],
    "private.example.": [["10.1.2.3"]],
    "localhost": [["::1", "127.0.0.1"]],
    "localhost.": [["::1", "127.0.0.1"]],
    "mixed.example": [["93.184.215.14", "127.0.0.1"]],
    "mapped.example": [["::ffff:127.0.0.1"]],
    "inside.example": [["::1"]],
    "metadata.google.internal": [["169.254.169.254"]],
    "instance-data": [["169.254.169.254"]],
}
"""What the names of this table resolve to, as `Network` takes it."""

_LOOPBACK = (
    "127.0.0.1",
    "localhost",
    "LOCALHOST",
    "localhost.",
    "127.1",
    "127.0.1",
    "127.255.255.254",
    "2130706433",
    "0x7f000001",
    "0x7f.0.0.1",
    "0177.0.0.1",
    "017700000001",
    "0",
    "0.0.0.0",
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]",
    "inside.example",
    "mapped.example",
    "mixed.example",
    "user@127.0.0.1",
    "good.example@127.0.0.1",
    "good.example%40127.0.0.1",
    "①②⑦.⓪.⓪.①",
    "127。0。0。1",
)
"""Hosts that lead to this machine, in the place of the host before a port."""

_ELSEWHERE = (
    "http://169.254.169.254/latest/meta-data/iam/",
    "http://2852039166/latest/",
    "http://0xa9fea9fe/",
    "http://0251.0376.0251.0376/",
    "http://[::ffff:169.254.169.254]/",
    "http://[::ffff:a9fe:a9fe]/",
    "http://[fd00:ec2::254]/",
    "http://100.100.100.200/",
    "http://168.63.129.16/",
    "http://metadata.google.internal/computeMetadata/v1/",
    "http://instance-data/",
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://192.168.0.1/",
    "http://100.64.0.1/",
    "http://198.18.0.1/",
    "http://224.0.0.1/",
    "http://[fe80::1]/",
    "http://[fe80::1%25lo]/",
    "http://[fc00::1]/",
    "http://[ff02::1]/",
    "http://private.example/",
    "http://private.example./",
    "https://private.example/",
    "http://user:password@good.example/",
    "http://good.example:0/",
    "http://good.example:65536/",
    "http://good.example:-1/",
    "http:///nobody",
    "http://",
    "http://[::1",
    "http://good.example\r\nHost: private.example/",
    "http://good.exa mple/",
    "http://good\0.example/",
    "file:///etc/passwd",
    "FILE:/etc/passwd",
    "gopher://good.example:70/_x",
    "dict://good.example:11211/",
    "ftp://good.example/x",
    "ldap://good.example/",
    "unix:///var/run/docker.sock",
    "jar:http://good.example!/",
    "javascript:alert(1)",
    "//good.example/",
    "/etc/passwd",
    "../../etc/passwd",
)


def urls(port: int) -> list[str]:
    """Every URL of the table; those that lead to this machine lead to this port."""
    return [*(f"http://{host}:{port}/x.safetensors" for host in _LOOPBACK), *_ELSEWHERE]


PATHS = (
    "../secret.safetensors",
    "../../secret.safetensors",
    "a/../../secret.safetensors",
    "./secret.safetensors",
    "/etc/passwd",
    "//etc/passwd",
    "..",
    ".",
    "a//b.safetensors",
    "a/",
    "..\\secret.safetensors",
    "a\\..\\..\\secret.safetensors",
    "C:\\secret.safetensors",
    "secret.safetensors\0.png",
    "\0",
    "a\nb/../c.safetensors",
    ".sd-worker/journal",
    "x" * 600,
)
"""Names that lead out of a folder, or are none."""

ENCODED = (
    "..%2fsecret.safetensors",
    "..%2f..%2fsecret.safetensors",
    "%2e%2e%2fsecret.safetensors",
    "%2e%2e/%2e%2e/secret.safetensors",
    "..%5csecret.safetensors",
    "..%252fsecret.safetensors",
    "%2fetc%2fpasswd",
    "a%2f..%2f..%2fsecret.safetensors",
    "secret.safetensors%00",
    "%00",
    "..;/secret.safetensors",
    "%c0%ae%c0%ae%2fsecret.safetensors",
    "%ff%fe",
    "....//secret.safetensors",
)
"""The same, as they are written into the path of a URL."""
