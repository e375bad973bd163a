// A mock issuer whose keys turn on command. Each line on standard input is answered by one line:
//   rotate ALG        makes a further key, signs with it from now on, prints its kid
//   mint JSON         prints a token: {"header": {..}, "claims": {..}, "kid": ".."}
//   node mock.mjs PORT
import { createInterface } from 'node:readline';
import { OAuth2Server } from 'oauth2-mock-server';

const port = Number(process.argv[2]);
const server = new OAuth2Server();
let own = await server.issuer.keys.generate('RS256');
await server.start(port, '127.0.0.1');
server.issuer.url = `http://127.0.0.1:${port}`;
console.log('ready');

for await (const line of createInterface({ input: process.stdin })) {
  const [verb, ...rest] = line.split(' ');
  if (verb === 'rotate') {
    own = await server.issuer.keys.generate(rest[0]);
    console.log(own.kid);
  } else {
    const wanted = JSON.parse(rest.join(' '));
    const token = await server.issuer.buildToken({
      kid: wanted.kid ?? own.kid,
      expiresIn: 300,
      scopesOrTransform: (header, payload) => {
        Object.assign(header, wanted.header);
        Object.assign(payload, wanted.claims);
      },
    });
    console.log(token);
  }
}
