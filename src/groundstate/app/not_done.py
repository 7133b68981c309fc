"""Ready-made lists for `Outside(not_done=...)`: exceptions after which surely nothing was sent. Dotted paths, so nothing is imported here.

Only what fails before the request leaves stands here: no address, no connection, a login refused. Never a time-out of reading or
writing, never a connection that broke: after those nobody knows. A list is true of one request: a library that repeats or redirects a
request by itself can raise such an error for its second, though its first was acted on, so turn that off as said at each list.
"""

from __future__ import annotations

from typing import Final

_Paths = tuple[str, ...]

# httpx follows no redirects unless told to, and the `retries=` of its transport repeats connecting alone.
HTTPX: Final[_Paths] = (
    "httpx.ConnectError",
    "httpx.ConnectTimeout",
    "httpx.PoolTimeout",
    "httpx.UnsupportedProtocol",
)

# With `allow_redirects=False` and no urllib3 Retry mounted. A refused connection is not among these: requests raises the same
# ConnectionError for that and for a connection that broke after sending.
REQUESTS: Final[_Paths] = (
    "requests.exceptions.ConnectTimeout",
    "requests.exceptions.InvalidSchema",
    "requests.exceptions.InvalidURL",
    "requests.exceptions.MissingSchema",
)

# With one mail a call. SMTPDataError is not among these: it comes after the mail itself was sent.
SMTPLIB: Final[_Paths] = (
    "builtins.ConnectionRefusedError",
    "socket.gaierror",
    "smtplib.SMTPConnectError",
    "smtplib.SMTPHeloError",
    "smtplib.SMTPAuthenticationError",
    "smtplib.SMTPNotSupportedError",
    "smtplib.SMTPSenderRefused",
    "smtplib.SMTPRecipientsRefused",
)

# With `Config(retries={"total_max_attempts": 1})`: botocore repeats requests by itself otherwise, also after a time-out of reading.
BOTOCORE: Final[_Paths] = (
    "botocore.exceptions.ConnectTimeoutError",
    "botocore.exceptions.EndpointConnectionError",
    "botocore.exceptions.NoCredentialsError",
    "botocore.exceptions.NoRegionError",
    "botocore.exceptions.ParamValidationError",
    "botocore.exceptions.PartialCredentialsError",
    "botocore.exceptions.ProxyConnectionError",
)
