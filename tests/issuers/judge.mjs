// Tokens, none as its issuer would make it, and what npm `jose` makes of each: a second opinion.
//   node judge.mjs SEED
// First line: {"jwks", "secret", "now"}; then one line each, without end: 1 or 0, the keys it is for (p, the public
// ones, or s, the secret), when it was changed (b, before it was signed, or a, after), a space, the token as JSON.
import { SignJWT, createLocalJWKSet, exportJWK, generateKeyPair, jwtVerify } from 'jose';

let state = BigInt(process.argv[2] ?? '1') | 1n;
const below = (bound) => {
  state ^= state >> 12n; state = BigInt.asUintN(64, state ^ (state << 25n)); state ^= state >> 27n;
  return Number((BigInt.asUintN(64, state * 0x2545f4914f6cdd1dn) >> 33n) % BigInt(bound || 1));
};
const of = (list) => list[below(list.length)];

const now = 1_800_000_000;
// One algorithm has two keys: a token without `kid` means neither.
const named = [
  ['ES256', 'ES256'], ['ES256', 'ES256-2'], ['RS256', 'RS256'], ['EdDSA', 'EdDSA'], ['PS256', 'PS256'], ['ES384', 'ES384'],
  ['RS512', 'RS512'], ['ES512', 'ES512'],
];
const algs = [...new Set(named.map(([alg]) => alg))];
const keys = [];
for (const [alg, kid] of named) {
  const { privateKey, publicKey } = await generateKeyPair(alg);
  keys.push({ alg, kid, world: 'p', privateKey, jwk: { ...(await exportJWK(publicKey)), kid, alg, use: 'sig' } });
}
const jwks = { keys: keys.map(({ jwk }) => jwk) };
const secret = Buffer.alloc(32, 0x5a);
keys.push({ alg: 'HS256', kid: 'HS256', world: 's', privateKey: secret });
// The slow ones come more rarely.
const often = [...keys, ...keys.filter(({ alg }) => ['ES256', 'EdDSA', 'HS256'].includes(alg))];
const worlds = {
  p: { with: createLocalJWKSet(jwks), algorithms: algs },
  s: { with: secret, algorithms: ['HS256'] },
};
console.log(JSON.stringify({ jwks, secret: secret.toString('latin1'), now }));

const claims = () => ({
  iss: 'https://issuer.example', aud: 'https://api.example', sub: 'alice', client_id: 'app',
  jti: 't-1', iat: now - 10, exp: now + 300, scope: 'read write',
});
const values = [
  null, 0, 1, -1, 1.5, 9e15, '', 'x', '9999999999', [], ['x'], {}, true, now, now + 100_000, 'https://api.example',
  ['https://api.example'], ['x', 'https://api.example'], 'https://issuer.example', 'none', 'HS256', 'JWT', 'at+jwt', 'ES256',
];
const pieces = ['', ' ', '\n', '=', '.', '..', 'A', '_', '-', '+', '/', 'é', '%2e', '\0', 'eyJ', 'e30'];
const texts = [
  ',"alg":"none"', ',"crit":["exp"]', ',"exp":"9"', ',"a":{"b":1,"b":2}', '}', '{', ',', ',"x":1e400', ' ',
  '\\u0061', ',"kid":"ES256"', ',"b64":false',
];
const splice = (text, list) => {
  const at = below(text.length + 1);
  const kept = text.slice(0, at);
  switch (below(4)) {
    case 0: return kept + of(list) + text.slice(at);
    case 1: return kept + text.slice(at + 1);
    case 2: return kept + text[below(text.length)] + text.slice(at + 1);
    default: return kept;
  }
};
const damage = (token) => {
  if (below(2)) return splice(token, pieces);
  const parts = token.split('.');
  const n = below(parts.length);
  const bytes = Buffer.from(parts[n], 'base64url');
  if (n === 2 && bytes.length) bytes[below(bytes.length)] ^= 1 << below(8);
  parts[n] = n === 2 ? bytes.toString('base64url')
    : Buffer.from(splice(bytes.toString(), texts)).toString('base64url');
  return parts.join('.');
};
const set = (object, name, value) => {
  if (value === null) delete object[name]; else object[name] = value;
};
const signed = async () => {
  const key = of(often);
  const payload = claims();
  const header = { alg: key.alg, kid: key.kid, typ: 'at+jwt' };
  const good = JSON.stringify([header, payload]);
  for (let m = below(3); m >= 0 || JSON.stringify([header, payload]) === good; m -= 1) {
    const date = of(['exp', 'nbf', 'iat']);
    switch (below(6)) {
      case 0: set(payload, of(['iss', 'aud', 'sub', date, 'jti', 'client_id', 'cnf']), of(values)); break;
      case 1: set(header, of(['kid', 'typ', 'x', 'jwk', 'jku']), of(values)); break;
      // Near the leeway, where a second decides, and anywhere.
      case 2: payload[date] = now + 10 - below(21); break;
      case 3: payload[date] = now + 2000 - below(4000); break;
      case 4: payload.aud = [`x${below(1000)}`, 'https://api.example']; break;
      default: payload[of(['sub', 'jti', 'client_id', 'scope'])] = `x ${below(1_000_000)}`;
    }
  }
  const token = await new SignJWT(payload).setProtectedHeader(header).sign(key.privateKey);
  return { token, world: key.world };
};
const opinion = async (token, world) => {
  try {
    await jwtVerify(token, worlds[world].with, {
      issuer: 'https://issuer.example', audience: 'https://api.example', typ: 'at+jwt',
      algorithms: worlds[world].algorithms, currentDate: new Date(now * 1000), clockTolerance: 5,
      requiredClaims: ['iss', 'aud', 'sub', 'exp', 'iat', 'jti', 'client_id'],
    });
    return 1;
  } catch { return 0; }
};
// Signing is slow, damaging is not: one signed token is damaged several times.
const lines = async () => {
  let made;
  try { made = await signed(); } catch { return []; /* jose does not sign everything */ }
  const { token, world } = made;
  const tokens = [['b', token]];
  for (let n = 0; n < 3; n += 1) {
    let damaged = token;
    for (let m = below(3); m >= 0; m -= 1) damaged = damage(damaged);
    if (damaged !== token) tokens.push(['a', damaged]);
  }
  return Promise.all(tokens.map(async ([when, each]) =>
    `${await opinion(each, world)}${world}${when} ${JSON.stringify(each)}\n`));
};
for (;;) {
  // Several at once, so that the cores are used.
  const batch = (await Promise.all(Array.from({ length: 32 }, lines))).flat().join('');
  if (!process.stdout.write(batch)) await new Promise((done) => process.stdout.once('drain', done));
}
