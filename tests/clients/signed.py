"""A client of the v1 scheme that shares no code with the edge: Python's standard library alone.

    signed.py send ADDRESS CA KEY_ID SECRET COUNT FILE   signs requests, sends them, keeps them in FILE
    signed.py replay ADDRESS CA FILE                     sends those in FILE again
Prints how many answers there were of each status, as JSON.
"""

import collections
import hashlib
import hmac
import http.client
import json
import secrets
import socket
import ssl
import sys
import time

HOST = "edge.test"


def sign(key_id, secret, number):
    body = b"" if number % 2 else b"order %d" % number
    method, path, query = ("POST" if body else "GET"), "/v1/orders", f"b={number}&a=2&a=1"
    now, nonce = str(int(time.time())), secrets.token_hex(16)
    digest = hashlib.sha256(body).hexdigest()
    text = "\n".join(
        ["v1", method, HOST, path, f"a=2&a=1&b={number}", now, nonce, digest, key_id]
    )
    signature = hmac.new(bytes.fromhex(secret), text.encode(), hashlib.sha256).hexdigest()
    headers = {
        "X-API-Key": key_id,
        "X-Timestamp": now,
        "X-Nonce": nonce,
        "X-Content-SHA256": digest,
        "X-Signature": f"v1={signature}",
    }
    return [method, f"{path}?{query}", body.decode(), headers]


def connect(address, ca):
    context = ssl.create_default_context(cafile=ca)
    connection = http.client.HTTPSConnection(HOST, context=context, timeout=30)
    dial = lambda _address, *more: socket.create_connection((address, 443), *more)
    connection._create_connection = dial
    return connection


def send(address, ca, requests):
    connection, statuses = connect(address, ca), collections.Counter()
    for method, target, body, headers in requests:
        connection.request(method, target, body.encode() or None, headers)
        answer = connection.getresponse()
        answer.read()
        statuses[answer.status] += 1
        if body and answer.status >= 400:
            # Whoever refuses a body does not read it, and ends the connection.
            connection.close()
    print(json.dumps(statuses))


def main():
    verb, address, ca, *rest = sys.argv[1:]
    if verb == "send":
        key_id, secret, count, file = rest
        requests = [sign(key_id, secret, number) for number in range(int(count))]
        with open(file, "a") as kept:
            kept.writelines(json.dumps(request) + "\n" for request in requests)
    else:
        with open(rest[0]) as kept:
            requests = [json.loads(line) for line in kept]
    send(address, ca, requests)


main()
