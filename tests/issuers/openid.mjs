// An OpenID client that others wrote, as an application would use it: discovery, client credentials, with
// DPoP if that is asked for, and three calls of a resource. A nonce that is demanded is its own affair.
//   node openid.mjs ISSUER bearer|dpop URL
// Prints {"token", "statuses"} as one line of JSON.
import * as client from 'openid-client';

const [issuer, kind, url] = process.argv.slice(2);
const secret = 'a-secret-of-the-tests-alone';
const config = await client.discovery(
  new URL(issuer), 'service', secret, client.ClientSecretBasic(secret),
  { execute: [client.allowInsecureRequests] },
);
const options = {};
if (kind === 'dpop') {
  options.DPoP = client.getDPoPHandle(config, await client.randomDPoPKeyPair('ES256'));
}
const { access_token: token } = await client.clientCredentialsGrant(config, { scope: 'read' }, options);
const statuses = [];
for (let n = 0; n < 3; n += 1) {
  const answer = await client.fetchProtectedResource(
    config, token, new URL(url), 'GET', undefined, undefined, options,
  );
  statuses.push(answer.status);
}
console.log(JSON.stringify({ token, statuses }));
