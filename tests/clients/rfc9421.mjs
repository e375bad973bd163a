// A client of RFC 9421 that shares no code with the edge: npm `http-message-signatures`, Node's crypto and https.
//
//   rfc9421.mjs ADDRESS CA KEY_ID ALGORITHM KEY_FILE TARGET [BODY]
//
// KEY_FILE holds a private key in PEM, or a secret in hexadecimal. Sends the request twice; prints both statuses.

import { createHash, createHmac, createPrivateKey, constants, randomBytes, sign } from "node:crypto";
import { readFileSync } from "node:fs";
import https from "node:https";
import { httpbis } from "http-message-signatures";

const [address, ca, id, algorithm, keyFile, target, body = ""] = process.argv.slice(2);
const text = readFileSync(keyFile, "utf8");

function signer(data) {
  if (algorithm === "hmac-sha256") {
    return createHmac("sha256", Buffer.from(text.trim(), "hex")).update(data).digest();
  }
  const key = createPrivateKey(text);
  switch (algorithm) {
    case "ed25519": return sign(null, data, key);
    case "ecdsa-p256-sha256": return sign("sha256", data, { key, dsaEncoding: "ieee-p1363" });
    case "ecdsa-p384-sha384": return sign("sha384", data, { key, dsaEncoding: "ieee-p1363" });
    case "rsa-pss-sha512":
      return sign("sha512", data, { key, padding: constants.RSA_PKCS1_PSS_PADDING, saltLength: 64 });
    case "rsa-v1_5-sha256": return sign("sha256", data, key);
    default: throw new Error(algorithm);
  }
}

const url = `https://edge.test${target}`;
const headers = { Host: "edge.test" };
if (body) {
  headers["Content-Digest"] = `sha-256=:${createHash("sha256").update(body).digest("base64")}:`;
  headers["Content-Length"] = String(Buffer.byteLength(body));
}
const signed = await httpbis.signMessage(
  {
    key: { id, alg: algorithm, sign: async (data) => signer(data) },
    name: "sig1",
    fields: ["@method", "@authority", "@target-uri", ...(body ? ["content-digest"] : [])],
    params: ["created", "keyid", "alg", "nonce"],
    paramValues: { created: new Date(), nonce: randomBytes(12).toString("base64url") },
  },
  { method: body ? "POST" : "GET", url, headers },
);

function send() {
  return new Promise((resolve, reject) => {
    const request = https.request(
      url,
      { method: signed.method, headers: signed.headers, ca: readFileSync(ca), lookup: (_, o, done) =>
          o.all ? done(null, [{ address, family: 4 }]) : done(null, address, 4) },
      (answer) => answer.resume().on("end", () => resolve(answer.statusCode)),
    );
    request.on("error", reject);
    request.end(body);
  });
}

console.log(await send(), await send());
