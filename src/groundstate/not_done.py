"""Ready-made lists for `ExternalService(not_done=...)`: exceptions that prove that the service did not act on the request.

Exceptions are named by dotted paths, so that this module does not import the libraries.

A list contains errors that are raised before the request is sent (no address, no connection, a login refused), and replies that mean, by
the protocol, that the server did not accept the request. A list never contains a timeout of reading or writing, or a broken connection:
after these, the server may have acted. A list is right only for a single request: a library that repeats or redirects a request by itself
can raise a listed error for its second request although the server acted on the first; the comment above each list says how to switch
repeating and redirecting off.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final

_Listed = tuple[str | Callable[[Exception], bool], ...]

# Nothing must be switched off: by default httpx follows no redirects, and `retries=` of its transport repeats only the opening of a
# connection.
HTTPX: Final[_Listed] = (
    "httpx.ConnectError",  # no address, no connection, or no TLS: an HTTP request needs an open connection (RFC 9112, 9)
    "httpx.ConnectTimeout",  # no connection was made in time
    "httpx.PoolTimeout",  # no connection in the client's own pool was free in time
    "httpx.UnsupportedProtocol",  # the URL does not begin with http:// or https://
)

# Use with `allow_redirects=False` and without a mounted urllib3 Retry. A refused connection is not listed: requests raises the same
# ConnectionError for a connection that broke after sending.
REQUESTS: Final[_Listed] = (
    "requests.exceptions.ConnectTimeout",  # no connection in time: an HTTP request needs an open connection (RFC 9112, 9)
    "requests.exceptions.InvalidSchema",  # the URL does not begin with http:// or https://
    "requests.exceptions.InvalidURL",  # the URL cannot be parsed
    "requests.exceptions.MissingSchema",  # the URL has no http:// or https://
)


def _smtp_refused_the_mail(error: Exception) -> bool:
    """Return whether the server replied 400 to 599 to the mail itself, so that the requested action did not occur (RFC 5321, 4.2.1).

    Other numbers do not count as such a reply: smtplib uses -1 for a reply that it could not read.
    """
    smtplib = sys.modules.get("smtplib")
    return smtplib is not None and isinstance(error, smtplib.SMTPDataError) and 400 <= error.smtp_code <= 599


# Use with one mail for each call. In SMTP the server accepts a mail only by its reply to the end of the mail's data (RFC 5321, 4.2.5): a
# mail that is refused before or by this reply was not sent.
SMTPLIB: Final[_Listed] = (
    "builtins.ConnectionRefusedError",  # no program listens at this address
    "socket.gaierror",  # the host name has no address
    "ssl.SSLCertVerificationError",  # the handshake failed: no command went over that connection
    "smtplib.SMTPConnectError",  # the server's greeting was a refusal
    "smtplib.SMTPHeloError",  # the server refused HELO
    "smtplib.SMTPAuthenticationError",  # the server refused the login
    "smtplib.SMTPNotSupportedError",  # the server lacks an extension that the mail or the login needs: the command was not sent
    "smtplib.SMTPSenderRefused",  # the server refused MAIL FROM
    "smtplib.SMTPRecipientsRefused",  # the server refused RCPT TO for all recipients, so that no data followed
    _smtp_refused_the_mail,
)

# Use with `Config(retries={"total_max_attempts": 1})`: otherwise botocore repeats requests by itself, also after a read timeout.
BOTOCORE: Final[_Listed] = (
    "botocore.exceptions.ConnectTimeoutError",  # no connection in time: an HTTP request needs an open connection (RFC 9112, 9)
    "botocore.exceptions.EndpointConnectionError",  # no address, or no connection
    "botocore.exceptions.NoCredentialsError",  # raised before the request is signed
    "botocore.exceptions.NoRegionError",  # raised before the request is signed
    "botocore.exceptions.ParamValidationError",  # raised before the request is signed
    "botocore.exceptions.PartialCredentialsError",  # raised before the request is signed
    "botocore.exceptions.ProxyConnectionError",  # no connection to the proxy
)
