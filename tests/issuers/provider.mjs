// An OpenID provider: client credentials, RFC 9068 access tokens, DPoP. Prints a line when it listens. Its operator
// turns its keys by lines on standard input, each answered by one line:
//   rotate            makes a further key, which signs from now on; prints its kid
//   withdraw KID      publishes this key no more
//   node provider.mjs PORT
import { createServer } from 'node:http';
import { createInterface } from 'node:readline';
import { generateKeyPair, exportJWK } from 'jose';
import Provider from 'oidc-provider';

const port = Number(process.argv[2]);
let made = 0;
const key = async () => {
  made += 1;
  const { privateKey } = await generateKeyPair('ES256', { extractable: true });
  return { ...(await exportJWK(privateKey)), kid: `provider-${made}`, use: 'sig', alg: 'ES256' };
};
// A provider reads its keys when it starts: with other keys it is another one at the same address.
const provide = (keys) => new Provider(`http://127.0.0.1:${port}`, {
  jwks: { keys },
  clients: [{
    client_id: 'service',
    client_secret: 'a-secret-of-the-tests-alone',
    grant_types: ['client_credentials'],
    redirect_uris: [],
    response_types: [],
    id_token_signed_response_alg: 'ES256',
  }],
  features: {
    clientCredentials: { enabled: true },
    devInteractions: { enabled: false },
    dPoP: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => 'https://api.example',
      useGrantedResource: () => true,
      getResourceServerInfo: () => ({
        scope: 'read write',
        audience: 'https://api.example',
        accessTokenFormat: 'jwt',
        accessTokenTTL: 300,
        jwt: { sign: { alg: 'ES256' } },
      }),
    },
  },
});
// The first key that fits signs.
let keys = [await key()];
let answer = provide(keys).callback();
createServer((request, response) => answer(request, response))
  .listen(port, '127.0.0.1', () => console.log('ready'));
for await (const line of createInterface({ input: process.stdin })) {
  const [verb, kid] = line.split(' ');
  keys = verb === 'rotate' ? [await key(), ...keys] : keys.filter((own) => own.kid !== kid);
  answer = provide(keys).callback();
  console.log(keys[0].kid);
}
