// An upstream that verifies what the edge tells it of a request's sender, by npm `jose` and the edge's own set of
// keys. It fetches the set once and never again. Each line on standard input is a token, answered by a line of JSON:
// {"header", "claims"}, or {"error"}.
//   node verify.mjs KEYS_URL ISSUER AUDIENCE
import { createInterface } from 'node:readline';
import { createRemoteJWKSet, jwtVerify } from 'jose';

const [url, issuer, audience] = process.argv.slice(2);
const keys = createRemoteJWKSet(new URL(url), { cooldownDuration: 3_600_000, cacheMaxAge: Infinity });
console.log('ready');
for await (const token of createInterface({ input: process.stdin })) {
  try {
    const told = await jwtVerify(token, keys, { issuer, audience, typ: 'JWT', algorithms: ['EdDSA'] });
    console.log(JSON.stringify({ header: told.protectedHeader, claims: told.payload }));
  } catch (error) {
    console.log(JSON.stringify({ error: error.code ?? String(error) }));
  }
}
