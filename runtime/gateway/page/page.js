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

// A token, coloured from green (certain) to red (unlikely); its alternatives on hover.
function token(piece, logprob, others) {
  const span = document.createElement("span");
  span.className = "token";
  span.tabIndex = -1;
  span.textContent = piece;
  const likely = Math.exp(logprob ?? 0);
  span.style.background = `hsl(${Math.round(120 * likely)} 80% 50% / ${0.08 + 0.3 * (1 - likely)})`;
  const listed = Object.entries(others ?? {}).sort((a, b) => b[1] - a[1]);
  const percent = ([text, x]) => `${(100 * Math.exp(x)).toFixed(1).padStart(5)} %  ${JSON.stringify(text)}`;
  span.dataset.others = listed.map(percent).join("\n");
  return span;
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
  columns.push(column);
  $("columns").append(column);
}

// The request of the first column as curl and Python.
function show() {
  const body = request(columns[0]);
  const base = new URL("v1", location.href).href;
  const quoted = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  const key = $("key").value ? ` \\\n  -H "Authorization: Bearer $API_KEY"` : "";
  $("curl").textContent = `curl ${base}/completions -H 'Content-Type: application/json'${key} \\\n  -d '${quoted}'`;
  const known = ["model", "prompt", "max_tokens", "temperature", "top_p", "presence_penalty", "frequency_penalty", "seed"];
  const own = Object.entries(body).filter(([name]) => known.includes(name));
  const extra = Object.fromEntries(Object.entries(body).filter(([name]) => !known.includes(name)));
  const lines = own.map(([name, value]) => `    ${name}=${JSON.stringify(value)},`);
  if (Object.keys(extra).length) lines.push(`    extra_body=${JSON.stringify(extra)},`);
  $("python").textContent = `from openai import OpenAI\n\nclient = OpenAI(base_url="${base}", api_key="${$("key").value ? "…" : "none"}")\nanswer = client.completions.create(\n${lines.join("\n")}\n)\nprint(answer.choices[0].text)`;
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
      if (firsts) {
        const mean = (1000 * since("time_to_first_token_seconds_sum")) / firsts;
        plot("first", mean, mean.toFixed(0));
      }
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
for (const kind of ["curl", "python"])
  $(`copy-${kind}`).addEventListener("click", () => navigator.clipboard.writeText($(kind).textContent));
addEventListener("keydown", (event) => {
  if (event.key === "Escape") stopping?.abort();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); generate(); }
});

$("key").value = sessionStorage.getItem("key") ?? "";
addColumn();
reconnect();
watch();
setInterval(watch, 1000);
