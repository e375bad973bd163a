// A client of the provider: gets a token, with or without DPoP, and proves a request with it.
//   node client.mjs ISSUER bearer
//   node client.mjs ISSUER dpop METHOD URL [COUNT [NONCE]]
// Prints {"token", "proofs"} as one line of JSON.
import { createHash, randomUUID } from 'node:crypto';
import { SignJWT, exportJWK, generateKeyPair } from 'jose';

const [issuer, kind, method, url, count = '1', nonce] = process.argv.slice(2);
const { privateKey, publicKey } = await generateKeyPair('ES256');
const jwk = await exportJWK(publicKey);
const proof = (claims) =>
  new SignJWT({ jti: randomUUID(), ...claims })
    .setProtectedHeader({ alg: 'ES256', typ: 'dpop+jwt', jwk })
    .setIssuedAt()
    .sign(privateKey);

const headers = {
  authorization: `Basic ${Buffer.from('service:a-secret-of-the-tests-alone').toString('base64')}`,
  'content-type': 'application/x-www-form-urlencoded',
};
const endpoint = `${issuer}/token`;
if (kind === 'dpop') headers.dpop = await proof({ htm: 'POST', htu: endpoint });
const body = new URLSearchParams({ grant_type: 'client_credentials', scope: 'read' });
const answer = await (await fetch(endpoint, { method: 'POST', headers, body })).json();
if (!answer.access_token) throw new Error(JSON.stringify(answer));
const token = answer.access_token;
const proofs = [];
for (let n = 0; kind === 'dpop' && n < Number(count); n += 1) {
  const ath = createHash('sha256').update(token).digest('base64url');
  proofs.push(await proof({ htm: method, htu: url, ath, ...(nonce ? { nonce } : {}) }));
}
console.log(JSON.stringify({ token, proofs }));
