"""What an operator may ask (pending, why, check, plan, status) and do (retry, settle, forget, rename)."""
