import * as api from './api.js';
import { detail } from './detail.js';
import { h, show } from './dom.js';
import { duration, plural } from './format.js';
import { overview } from './overview.js';

const PICTURE_EVERY = 2000, DETAIL_EVERY = 10000;
const main = document.getElementById('main'), status = document.getElementById('status'), who = document.getElementById('who');

const state = { me: null, picture: null, seen: 0, error: null, login: null, histories: new Map(), found: {}, asked: 0 };

// route is the subscription that is shown; empty for all queues.
const route = () => (location.hash.startsWith('#/') ? location.hash.slice(2).split('/').map(decodeURIComponent).join('/') : state.route || '');

function draw() {
  const name = route();
  if (state.login !== null) {
    document.title = 'Log in – Spillway';
    show(status, '');
    show(who, '');
    show(main, loginForm());
    return;
  }
  if (!state.picture) {
    show(main, h('p', {}, state.error ? state.error.message : 'Loading.'));
    return;
  }
  const all = state.picture.troubles, critical = all.filter((t) => t.severity === 'critical').length;
  show(status, all.length === 0 ? 'No trouble' : `${plural(all.length, 'trouble', 'troubles')}, ${critical} critical`);
  show(who, state.me.caller, ' ', state.me.caller.startsWith('token:') || state.me.caller.startsWith('oidc:')
    ? h('button', { class: 'plain', type: 'button', 'data-action': 'logout' }, 'Log out') : null);
  document.title = `${all.length ? `(${all.length}) ` : ''}${name || 'Spillway'}`;
  show(main,
    h('p', { class: state.error ? 'away' : null, role: 'alert', hidden: !state.error },
      state.error ? `No answer for ${duration((Date.now() - state.seen) / 1000)}, this is what was before: ${state.error.message}` : ''),
    h('div', { 'data-key': name }, name ? detail(name, state.picture, state.me, state.found) : overview(state.picture, state.histories)));
}

function loginForm() {
  return h('form', { 'data-action': 'login' },
    h('h1', {}, 'Log in'),
    h('label', { for: 'token' }, 'Token, of security.tokens or of your issuer'),
    h('p', {}, h('input', { id: 'token', type: 'password', name: 'token', autocomplete: 'current-password', required: true, 'aria-describedby': 'problem' })),
    h('p', { id: 'problem', role: 'alert' }, state.login),
    h('button', { type: 'submit' }, 'Log in'));
}

// askMe asks what the caller may do with what is shown.
async function askMe() {
  const of = route();
  state.me = { ...await api.me(of), of };
}

async function refresh() {
  try {
    if (!state.me || state.me.of !== route()) await askMe();
    state.picture = await api.picture();
    state.seen = Date.now();
    state.error = null;
  } catch (e) {
    if (e.status === 401) {
      state.me = null;
      state.login = state.login ?? '';
    } else {
      state.error = e;
    }
  }
  draw();
  if (!state.error && state.login === null && Date.now() - state.asked >= DETAIL_EVERY) await ask();
}

// ask asks for what the picture has not. The audit of many partitions is long: it is asked for once.
async function ask() {
  state.asked = Date.now();
  const name = route();
  const into = async (field, answer) => {
    const got = await answer.catch((e) => e);
    if (route() === name) state.found[field] = got;
  };
  if (!name) {
    for (const q of state.picture.queues) state.histories.set(q.name, await api.history(q.name).catch(() => undefined));
  } else {
    await Promise.all([
      api.history(name).then((r) => { if (route() === name) state.found.history = r; }, () => {}),
      into('entries', api.call('ListSinkState', { subscription: name })),
      into('undelivered', api.call('ListUndelivered', { subscription: name })),
      state.found.audit === undefined && into('audit', api.call('Audit', { name, page_size: 200 })),
    ]);
  }
  draw();
}

async function steer(method, done) {
  const name = route();
  try {
    await api.call(method, { name });
    state.found.steered = done;
  } catch (e) {
    state.found.steered = e.message;
  }
  await refresh();
}

async function redrive(filter) {
  const name = route();
  let said;
  try {
    const r = await api.call('RedriveUndelivered', { subscription: name, filter });
    said = `${plural(Number(r.offsets), 'record is', 'records are')} delivered once more.`;
  } catch (e) {
    said = e.message;
  }
  if (route() === name) state.found.redriven = said;
  state.found.sure = false;
  state.asked = 0; // the list is another now
  await refresh();
}

const actions = {
  redrive: ({ outcome, topic, partition, first, next }) => redrive({ outcome, topic, partition: Number(partition), range: { first, next } }),
  redriveAll: () => {
    if (state.found.sure) return redrive({ outcome: 'OUTCOME_DEAD_LETTERED' });
    state.found.sure = true;
    return draw();
  },
  pause: () => steer('PauseSubscription', 'It is paused.'),
  resume: () => steer('ResumeSubscription', 'It goes on.'),
  audit: () => { state.found.audit = undefined; draw(); return ask(); },
  logout: async () => { await api.logout().catch(() => {}); state.me = null; state.picture = null; await refresh(); },
};

document.addEventListener('click', (e) => {
  const b = e.target.closest('button[data-action]');
  if (b && !b.disabled) actions[b.dataset.action](b.dataset);
});

document.addEventListener('submit', async (e) => {
  e.preventDefault();
  const token = document.getElementById('token').value;
  try {
    await api.login(token);
    state.login = null;
    state.asked = 0;
    await refresh();
    main.focus();
  } catch (problem) {
    state.login = problem.message;
    draw();
  }
});

window.addEventListener('hashchange', () => {
  if (!location.hash.startsWith('#/')) return;
  state.route = route();
  state.found = {};
  state.asked = 0;
  draw();
  main.focus();
  window.scrollTo(0, 0);
  if (state.picture) refresh();
});

async function loop() {
  if (document.visibilityState === 'visible' && state.login === null) await refresh(); // each try without a login is a refusal in the log
  setTimeout(loop, PICTURE_EVERY);
}
state.route = route();
loop();
