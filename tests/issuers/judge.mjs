// Tokens, good and damaged, and what npm `jose` makes of each: a second opinion.
//   node judge.mjs COUNT SEED
// First line: {"jwks", "now"}; then one line each: 1 or 0, a space, the token.
import { SignJWT, createLocalJWKSet, exportJWK, generateKeyPair, jwtVerify } from 'jose';

const count = Number(process.argv[2]);
let state = BigInt(process.argv[3] ?? '1') | 1n;
const below = (bound) => {
  state ^= state >> 12n; state = BigInt.asUintN(64, state ^ (state << 25n)); state ^= state >> 27n;
  return Number((BigInt.asUintN(64, state * 0x2545f4914f6cdd1dn) >> 33n) % BigInt(bound || 1));
};
const of = (list) => list[below(list.length)];

const now = 1_800_000_000;
const algs = ['ES256', 'RS256', 'EdDSA', 'PS256', 'ES384', 'RS512'];
const keys = [];
for (const alg of algs) {
  const { privateKey, publicKey } = await generateKeyPair(alg);
  keys.push({ alg, kid: alg, privateKey, jwk: { ...(await exportJWK(publicKey)), kid: alg, alg, use: 'sig' } });
}
const jwks = { keys: keys.map(({ jwk }) => jwk) };
const set = createLocalJWKSet(jwks);
console.log(JSON.stringify({ jwks, now }));

const claims = () => ({
  iss: 'https://issuer.example', aud: 'https://api.example', sub: 'alice', client_id: 'app',
  jti: 't-1', iat: now - 10, exp: now + 300, scope: 'read write',
});
const values = [
  null, 0, 1, -1, 1.5, 9e15, '', 'x', '9999999999', [], ['x'], {}, true, now, now + 4, now + 6, now - 4, now - 6,
  now + 100_000, 'https://api.example', ['https://api.example'], ['x', 'https://api.example'],
  'https://issuer.example', 'none', 'HS256', 'JWT', 'at+jwt', 'ES256',
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
const signed = async () => {
  const key = of(keys);
  const payload = claims();
  const header = { alg: key.alg, kid: key.kid, typ: 'at+jwt' };
  if (below(3)) {
    const name = of(['iss', 'aud', 'sub', 'exp', 'iat', 'nbf', 'jti', 'client_id', 'cnf']);
    const value = of(values);
    if (value === null) delete payload[name]; else payload[name] = value;
  } else if (below(2)) {
    const name = of(['kid', 'typ', 'x', 'jwk', 'jku']);
    const value = of(values);
    if (value === null) delete header[name]; else header[name] = value;
  }
  return new SignJWT(payload).setProtectedHeader(header).sign(key.privateKey);
};
const opinion = async (token) => {
  try {
    await jwtVerify(token, set, {
      issuer: 'https://issuer.example', audience: 'https://api.example', typ: 'at+jwt', algorithms: algs,
      currentDate: new Date(now * 1000), clockTolerance: 5,
      requiredClaims: ['iss', 'aud', 'sub', 'exp', 'iat', 'jti', 'client_id'],
    });
    return 1;
  } catch { return 0; }
};
let pool = [];
for (let n = 0; n < count; n += 1) {
  // Signing is slow, damaging is not: one signed token is damaged several times.
  if (n % 4 === 0) {
    try { pool.push(await signed()); } catch { /* jose does not sign everything */ }
    if (pool.length > 64) pool = pool.slice(-64);
  }
  let token = of(pool);
  for (let m = below(3); m > 0; m -= 1) token = damage(token);
  if (/[\n\r]/.test(token)) continue;
  if (!process.stdout.write(`${await opinion(token)} ${token}\n`)) {
    await new Promise((done) => process.stdout.once('drain', done));
  }
}
