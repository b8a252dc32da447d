// Asks the buffer's HTTP port.

let csrf = '';

async function request(path, options = {}) {
  let r;
  try {
    r = await fetch('api/' + path, { credentials: 'same-origin', cache: 'no-store', ...options });
  } catch {
    throw Object.assign(new Error('the buffer does not answer'), { status: 0 });
  }
  if (!r.ok) throw Object.assign(new Error((await r.text()).trim() || r.statusText), { status: r.status });
  return r.status === 204 ? null : r.json();
}

const post = (path, body) => request(path, {
  method: 'POST',
  headers: { 'Content-Type': 'application/json', 'X-Spillway-Csrf': csrf },
  body: JSON.stringify(body),
});

// me tells who the caller is, and whether a subscription is theirs to operate.
export async function me(name) {
  const m = await request('me?name=' + encodeURIComponent(name));
  csrf = m.csrf;
  return m;
}
export const picture = () => request('picture');
export const history = (name) => request('history?name=' + encodeURIComponent(name));
export const login = (token) => post('login', { token });
export const logout = () => post('logout', {});

// call calls an RPC of BufferAdminService. A token of before a restart is replaced, once.
export async function call(method, body) {
  try {
    return await post('call/' + method, body);
  } catch (e) {
    if (e.status !== 403) throw e;
    await me('');
    return post('call/' + method, body);
  }
}
