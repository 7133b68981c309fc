"""Ready-made lists for `Outside(not_done=...)`: exceptions after which surely nothing was done. Dotted paths, so nothing is imported here.

What fails before the request leaves stands here: no address, no connection, a login refused; and a reply of which the protocol itself
says that the server did not take the request. Never a time-out of reading or writing, never a connection that broke: after those nobody
knows. A list is true of one request: a library that repeats or redirects a request by itself can raise such an error for its second,
though its first was acted on, so turn that off as said at each list.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final

_Listed = tuple[str | Callable[[Exception], bool], ...]

# httpx follows no redirects unless told to, and the `retries=` of its transport repeats connecting alone.
HTTPX: Final[_Listed] = (
    "httpx.ConnectError",  # no address, no connection, or no TLS: a request goes over a connection that is open (RFC 9112, 9)
    "httpx.ConnectTimeout",  # the same, not in time
    "httpx.PoolTimeout",  # no connection of the client's own pool was free
    "httpx.UnsupportedProtocol",  # the URL is none of HTTP
)

# With `allow_redirects=False` and no urllib3 Retry mounted. A refused connection is not among these: requests raises the same
# ConnectionError for that and for a connection that broke after sending.
REQUESTS: Final[_Listed] = (
    "requests.exceptions.ConnectTimeout",  # no connection in time: a request goes over a connection that is open (RFC 9112, 9)
    "requests.exceptions.InvalidSchema",  # the URL is none of HTTP
    "requests.exceptions.InvalidURL",  # it cannot be read
    "requests.exceptions.MissingSchema",  # the same
)


def _smtp_refused_the_mail(error: Exception) -> bool:
    """A reply of 400 to 599 to the mail itself: the server did not accept it, and the requested action did not occur (RFC 5321, 4.2.1).

    Any other number is no such reply: smtplib says -1 where it could not read one.
    """
    smtplib = sys.modules.get("smtplib")
    return smtplib is not None and isinstance(error, smtplib.SMTPDataError) and 400 <= error.smtp_code <= 599


# With one mail a call. In SMTP the server takes a mail over by its reply to the end of the mail's data, and by nothing before (RFC 5321,
# 4.2.5): what is refused until then, and what is refused there, was not sent.
SMTPLIB: Final[_Listed] = (
    "builtins.ConnectionRefusedError",  # nobody listens there
    "socket.gaierror",  # no address
    "ssl.SSLCertVerificationError",  # the handshake failed: no command went over that connection
    "smtplib.SMTPConnectError",  # the server's greeting was a refusal
    "smtplib.SMTPHeloError",  # it refused the HELO
    "smtplib.SMTPAuthenticationError",  # it refused the login
    "smtplib.SMTPNotSupportedError",  # it lacks an extension that the mail or the login needs: the command was not sent
    "smtplib.SMTPSenderRefused",  # it refused MAIL FROM
    "smtplib.SMTPRecipientsRefused",  # it refused RCPT TO of all recipients, so that no data followed
    _smtp_refused_the_mail,
)

# With `Config(retries={"total_max_attempts": 1})`: botocore repeats requests by itself otherwise, also after a time-out of reading.
BOTOCORE: Final[_Listed] = (
    "botocore.exceptions.ConnectTimeoutError",  # no connection in time: a request goes over a connection that is open (RFC 9112, 9)
    "botocore.exceptions.EndpointConnectionError",  # no address, or no connection
    "botocore.exceptions.NoCredentialsError",  # these are found before the request is signed
    "botocore.exceptions.NoRegionError",
    "botocore.exceptions.ParamValidationError",
    "botocore.exceptions.PartialCredentialsError",
    "botocore.exceptions.ProxyConnectionError",  # no connection to the proxy
)
