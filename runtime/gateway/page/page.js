// The page at /: streams completions of one prompt into one or two columns.
const $ = (id) => document.getElementById(id);
const columns = [];
let stopping = null;

const headers = () => {
  const key = $("key").value.trim();
  const json = { "Content-Type": "application/json" };
  return key ? { ...json, Authorization: `Bearer ${key}` } : json;
};

// What a column asks for. Numbers that mean "off" are left out.
const OFF = { top_k: 0, min_p: 0, presence_penalty: 0, frequency_penalty: 0, repetition_penalty: 1, top_p: 1 };
function request(column) {
  const body = { prompt: $("prompt").value };
  for (const field of column.querySelectorAll("[data-field]")) {
    const name = field.dataset.field;
    const value = name === "model" ? field.value : Number(field.value);
    if (field.value !== "" && OFF[name] !== value) body[name] = value;
  }
  return body;
}

// Events of a streamed answer.
async function* events(body, signal) {
  const more = { stream: true, logprobs: 5, stream_options: { include_usage: true } };
  const answer = await fetch("v1/completions", {
    method: "POST", headers: headers(), body: JSON.stringify({ ...body, ...more }), signal,
  });
  if (!answer.ok) throw new Error((await answer.json()).error.message);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = "";;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line === "data: [DONE]") return;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

// Text of tokens; characters may be spread over several ("bytes:\xe2").
function textOf() {
  const decoder = new TextDecoder(), encoder = new TextEncoder();
  return (piece) => {
    if (piece.startsWith("token_id:")) return "";
    const bytes = piece.startsWith("bytes:")
      ? Uint8Array.from(piece.slice(6).split("\\x").slice(1), (hex) => parseInt(hex, 16))
      : encoder.encode(piece);
    return decoder.decode(bytes, { stream: true });
  };
}

// A token: the less likely, the warmer; its alternatives are told by `tell`.
function token(piece, logprob, others) {
  const span = document.createElement("span");
  span.className = "token";
  span.tabIndex = -1;
  span.textContent = piece;
  const likely = Math.exp(logprob ?? 0);
  span.style.background = `hsl(25 95% 50% / ${(0.6 * (1 - likely)).toFixed(3)})`;
  const listed = Object.entries(others ?? {}).sort((a, b) => b[1] - a[1]);
  const percent = ([text, x]) => `${(100 * Math.exp(x)).toFixed(1).padStart(5)} %  ${JSON.stringify(text)}`;
  span.dataset.others = listed.map(percent).join("\n");
  return span;
}

// Shows a token's alternatives below it, within the window; nothing hides them.
function tell(span) {
  const box = $("alternatives");
  box.hidden = !span?.dataset.others;
  if (box.hidden) return;
  box.textContent = span.dataset.others;
  const at = span.getClientRects()[0];
  const left = Math.min(at.left, innerWidth - box.offsetWidth - 8);
  const below = at.bottom + 4 + box.offsetHeight < innerHeight;
  box.style.left = `${Math.max(8, left)}px`;
  box.style.top = `${below ? at.bottom + 4 : at.top - 4 - box.offsetHeight}px`;
}

// Arrow keys go from token to token.
function walk(event) {
  const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
  const tokens = [...event.currentTarget.querySelectorAll(".token")];
  if (!step || !tokens.length) return;
  event.preventDefault();
  const next = tokens.indexOf(document.activeElement) + step;
  tokens[Math.max(0, Math.min(next, tokens.length - 1))].focus();
}

// Where two answers part.
function mark() {
  const [left, right] = columns.map((column) => [...column.querySelectorAll(".token")]);
  if (!right) return;
  const first = left.findIndex((span, i) => span.textContent !== right[i]?.textContent);
  for (const span of [left[first], right[first]]) span?.classList.add("differs");
}

async function run(column, signal) {
  const answer = column.querySelector(".answer");
  const note = column.querySelector(".note");
  const prompt = document.createElement("span");
  prompt.className = "prompt";
  prompt.textContent = $("prompt").value;
  answer.replaceChildren(prompt);
  note.className = "note";
  note.textContent = "waiting…";
  const begin = performance.now();
  const text = textOf();
  let first = null, count = 0, reason = "";
  try {
    for await (const event of events(request(column), signal)) {
      const [choice] = event.choices;
      if (!choice) continue;
      const { tokens, token_logprobs, top_logprobs } = choice.logprobs;
      first ??= performance.now() - begin;
      tokens.forEach((piece, i) => answer.append(token(text(piece), token_logprobs[i], top_logprobs[i])));
      count += tokens.length;
      reason = choice.finish_reason ?? reason;
      const seconds = (performance.now() - begin - first) / 1000;
      const rate = seconds > 0.05 ? `${(count / seconds).toFixed(0)} tokens/s` : "";
      note.textContent = [`${count} tokens`, `first after ${first.toFixed(0)} ms`, rate, reason].filter(Boolean).join(" · ");
    }
  } catch (error) {
    if (error.name === "AbortError") note.textContent += " · stopped";
    else { note.textContent = error.message; note.className = "note error"; }
  }
}

async function generate() {
  if (stopping) return;
  stopping = new AbortController();
  $("go").disabled = true;
  $("stop").disabled = false;
  await Promise.all(columns.map((column) => run(column, stopping.signal)));
  mark();
  stopping = null;
  $("go").disabled = false;
  $("stop").disabled = true;
}

function addColumn() {
  const column = $("column").content.cloneNode(true).querySelector(".column");
  const select = column.querySelector("select");
  for (const name of models) select.add(new Option(name, name));
  if (columns.length) {
    for (const field of column.querySelectorAll("[data-field]"))
      field.value = columns[0].querySelector(`[data-field=${field.dataset.field}]`).value;
  }
  column.addEventListener("input", show);
  const answer = column.querySelector(".answer");
  answer.addEventListener("keydown", walk);
  for (const kind of ["pointerover", "focusin"])
    answer.addEventListener(kind, (event) => tell(event.target.closest(".token")));
  for (const kind of ["pointerleave", "focusout"]) answer.addEventListener(kind, () => tell(null));
  for (const button of column.querySelectorAll("[data-copy]"))
    button.addEventListener("click", () => copy(button));
  columns.push(column);
  $("columns").append(column);
  show();
}

// Each column's request as curl and Python.
function show() {
  for (const column of columns) {
    const body = request(column);
    column.querySelector(".curl").textContent = asCurl(body);
    column.querySelector(".python").textContent = asPython(body);
  }
}

const base = new URL("v1", location.href).href;
function asCurl(body) {
  const quoted = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  const key = $("key").value ? ` \\\n  -H "Authorization: Bearer $API_KEY"` : "";
  return `curl ${base}/completions -H 'Content-Type: application/json'${key} \\\n  -d '${quoted}'`;
}

const KNOWN = ["model", "prompt", "max_tokens", "temperature", "top_p", "presence_penalty", "frequency_penalty", "seed"];
function asPython(body) {
  const own = Object.entries(body).filter(([name]) => KNOWN.includes(name));
  const extra = Object.fromEntries(Object.entries(body).filter(([name]) => !KNOWN.includes(name)));
  const lines = own.map(([name, value]) => `    ${name}=${JSON.stringify(value)},`);
  if (Object.keys(extra).length) lines.push(`    extra_body=${JSON.stringify(extra)},`);
  return `from openai import OpenAI\n\nclient = OpenAI(base_url="${base}", api_key="${$("key").value ? "…" : "none"}")\nanswer = client.completions.create(\n${lines.join("\n")}\n)\nprint(answer.choices[0].text)`;
}

async function copy(button) {
  const text = button.closest(".column").querySelector(`.${button.dataset.copy}`).textContent;
  await navigator.clipboard.writeText(text);
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

// Figures, from what Prometheus reads: name -> sum over its labels.
async function figures() {
  const text = await (await fetch("metrics")).text();
  const sums = {};
  for (const line of text.split("\n")) {
    const parts = /^vllm:(\w+)\{[^}]*\} (\S+)$/.exec(line);
    if (parts) sums[parts[1]] = (sums[parts[1]] ?? 0) + Number(parts[2]);
  }
  return sums;
}

const history = { rate: [], queue: [], first: [] };
function plot(name, value, text) {
  const points = history[name];
  points.push(value);
  if (points.length > 120) points.shift();
  const most = Math.max(...points, 1e-9);
  $(name).textContent = text;
  const line = points.map((y, i) => `${i + 120 - points.length},${38 - (36 * y) / most}`);
  $(`${name}-plot`).firstElementChild.setAttribute("points", line.join(" "));
}

let before = null;
async function watch() {
  try {
    const now = { ...(await figures()), at: performance.now() };
    if (before) {
      const since = (name) => (now[name] ?? 0) - (before[name] ?? 0);
      const rate = (1000 * since("generation_tokens_total")) / (now.at - before.at);
      plot("rate", rate, rate.toFixed(0));
      plot("queue", now.num_requests_running + now.num_requests_waiting, `${now.num_requests_running} · ${now.num_requests_waiting}`);
      const firsts = since("time_to_first_token_seconds_count");
      const mean = firsts ? (1000 * since("time_to_first_token_seconds_sum")) / firsts : history.first.at(-1);
      if (mean !== undefined) plot("first", mean, mean.toFixed(0));
    }
    before = now;
  } catch { before = null; }
}

let models = [];
async function connect() {
  const answer = await fetch("v1/models", { headers: headers() });
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error.message);
  models = body.data.map((model) => model.id);
  $("status").textContent = body.data.map((m) => `${m.id}, ${m.max_model_len} positions`).join(" · ");
  for (const column of columns) {
    const select = column.querySelector("select");
    if (!select.length) for (const name of models) select.add(new Option(name, name));
  }
  show();
}
const reconnect = () => connect().catch((error) => { $("status").textContent = error.message; });

$("request").addEventListener("submit", (event) => { event.preventDefault(); generate(); });
$("stop").addEventListener("click", () => stopping?.abort());
$("prompt").addEventListener("input", show);
$("key").addEventListener("change", () => { sessionStorage.setItem("key", $("key").value); reconnect(); });
$("compare").addEventListener("change", () => {
  if ($("compare").checked) addColumn();
  else columns.splice(1).forEach((column) => column.remove());
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape") stopping?.abort();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); generate(); }
});

$("key").value = sessionStorage.getItem("key") ?? "";
addColumn();
reconnect();
watch();
setInterval(watch, 1000);
