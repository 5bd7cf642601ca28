// Sends an image to the REST API and shows what comes back. It asks this server alone, and keeps nothing.
import { drawBoxes, drawClasses, drawHeat, card, rows, shownOf } from "/draw.js";

const $ = (id) => document.getElementById(id);
const encode = encodeURIComponent;
let image = null; // {file, url, bitmap, base64}
let found = []; // the main answer's rows
let thresholds = {}; // display thresholds by model and version, where the server knows them
let shown = ""; // the model and version that the slider was set for
let turn = 0; // a newer image or model makes older answers void

async function api(path, body) {
  const headers = body ? { "Content-Type": "application/json" } : {};
  const token = sessionStorage.getItem("token");
  if (token) headers.Authorization = `Bearer ${token}`;
  const options = { headers, method: body ? "POST" : "GET", body: body && JSON.stringify(body) };
  const response = await fetch(path, options).catch(() => {
    throw new Error("The server does not answer; is it still running?");
  });
  $("access").hidden = response.status !== 401;
  // JSON has no NaN and no Infinity, which a model may answer.
  const answer = JSON.parse((await response.text()).replace(/(?<=[[,:])(-?Infinity|NaN)(?=[\],}])/g, "null"));
  if (!response.ok) throw new Error(`${response.status}: ${answer.error ?? response.statusText}`);
  return answer;
}

function fail(error) {
  $("error").textContent = error ? error.message ?? error : "";
  $("error").hidden = !error;
}

async function listModels() {
  const { models, thresholds: known } = await api("/page/models");
  thresholds = known ?? {};
  const options = [];
  for (const name of models) {
    const states = (await api(`/v1/models/${encode(name)}`)).model_version_status;
    const versions = states.filter((each) => each.state === "AVAILABLE").map((each) => each.version);
    options.push(new Option(versions.length > 1 ? `${name}, newest` : name, encode(name)));
    if (versions.length < 2) continue;
    options.push(...versions.map((n) => new Option(`${name}, version ${n}`, `${encode(name)}/versions/${n}`)));
  }
  const chosen = $("model").value;
  $("model").replaceChildren(...(options.length ? options : [new Option("none is loaded")]));
  if (options.some((option) => option.value === chosen)) $("model").value = chosen;
  $("model").disabled = !options.length;
}

async function take(file) {
  if (!file) return;
  const mine = ++turn;
  const base64 = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Error(`${file.name} cannot be read`));
    reader.readAsDataURL(file);
  });
  // The server reads formats that a browser may not; then there are answers without a picture.
  const bitmap = await createImageBitmap(file).catch(() => null);
  if (mine !== turn) return;
  if (image) URL.revokeObjectURL(image.url);
  image = { file, bitmap, base64, url: URL.createObjectURL(file) };
  $("picture").src = image.url;
  $("picture").hidden = !bitmap;
  $("frame").style.setProperty("--aspect", bitmap ? bitmap.width / bitmap.height : 1);
  $("frame").style.setProperty("--pixels", bitmap?.width ?? 0); // a small image is enlarged, a large one never
  document.body.classList.add("has-image");
  await run();
}

async function run() {
  if (!image || $("model").disabled) return;
  const mine = ++turn;
  const model = `/v1/models/${$("model").value}`;
  fail(null);
  show([], "Looking ...");
  $("result").hidden = false;
  $("frame").classList.add("busy");
  $("stages").hidden = true;
  $("cards").replaceChildren();
  document.body.setAttribute("aria-busy", "true");
  try {
    const metadata = await api(`${model}/metadata`);
    const has = (name) => name in metadata.metadata.signature_def.signature_def;
    const main = ["detect", "localize", "classify"].find(has);
    if (!main) throw new Error("This model has none of the signatures detect, localize and classify.");
    setThreshold(metadata.model_spec, main);
    const begun = performance.now();
    const answer = await ask(model, main);
    if (mine !== turn) return;
    tell(answer, main, metadata.model_spec, performance.now() - begun);
    if (!answer.status) await showStages(model, has, { [main]: answer }, mine);
  } catch (error) {
    if (mine !== turn) return;
    fail(error);
    $("result").hidden = !image.bitmap;
    if ($("found").textContent.startsWith("Looking")) $("found").textContent = "No answer";
  } finally {
    if (mine === turn) {
      $("frame").classList.remove("busy");
      document.body.removeAttribute("aria-busy");
    }
  }
}

// Sets the slider to the model's own display threshold; what a person chose stays while the model does.
function setThreshold(spec, signature) {
  const key = `${spec.name}/${spec.version}/${signature}`;
  if (key === shown) return;
  shown = key;
  const own = signature === "detect" ? thresholds[spec.name]?.[spec.version] : undefined;
  $("least").value = own ?? (signature === "classify" ? 0.3 : 0.5);
}

// Gives {rows: [{label, score, colour, box?}], size?, status}.
async function ask(model, signature) {
  if (signature === "classify") {
    const examples = [{ "image/encoded": { b64: image.base64 } }];
    const { results } = await api(`${model}:classify`, { signature_name: signature, examples });
    return { rows: rows(results[0]), status: "" };
  }
  const instances = [{ image_bytes: { b64: image.base64 } }];
  const [one] = (await api(`${model}:predict`, { signature_name: signature, instances })).predictions;
  const many = [...Array(one.num_detections).keys()];
  const pairs = many.map((i) => [one.detection_class_entities[i], one.detection_scores[i]]);
  const read = rows(pairs, one.detection_boxes);
  return { rows: read, size: one.image_size, status: one.status };
}

function tell(answer, signature, spec, milliseconds) {
  const size = answer.size?.[0] ? answer.size : image.bitmap && [image.bitmap.height, image.bitmap.width];
  const facts = [image.file.name, size && `${size[1]} × ${size[0]} pixels`, bytes(image.file.size)];
  facts.push(`${spec.name} version ${spec.version}, ${signature}`, `${Math.round(milliseconds)} ms`);
  $("facts").textContent = facts.filter(Boolean).join("  ·  ");
  $("frame").classList.remove("busy");
  if (answer.status) fail(`The server cannot read this image: ${answer.status}`);
  show(answer.rows, answer.status ? "Not read" : null, signature);
}

function show(all, words, signature) {
  found = all;
  $("found").dataset.words = words ?? "";
  $("slider").hidden = Boolean(words);
  // Localization gives each of the best classes a box, which may well be the same.
  $("found").dataset.several = signature === "localize" ? "yes" : "";
  $("found").dataset.kind = signature === "detect" ? "object" : "class";
  filter();
}

function filter() {
  const least = Number($("least").value);
  $("level").textContent = least.toFixed(2);
  const kept = shownOf(found, least, $("found").dataset.several);
  const { words, kind } = $("found").dataset;
  const many = `${kept.length} ${kind}${kept.length === 1 ? "" : kind === "class" ? "es" : "s"}`;
  $("found").textContent = words || (kept.length === found.length ? many : `${many} of ${found.length}`);
  drawBoxes($("frame"), kept);
  drawClasses($("list"), kept, $("frame"));
}

async function showStages(model, has, known, mine) {
  $("stages").hidden = false;
  const stages = [
    ["extract_features", "Features", "heat", "Brighter where the features of a window are stronger"],
    ["classify", "Classes", "classes", "The whole image's classes, best first"],
    ["localize", "Localization", "boxes", "A box for each of the best classes"],
    ["detect", "Detection", "boxes", "The boxes of all windows, merged, that score enough to be shown"],
  ].filter(([signature]) => has(signature) && (signature !== "extract_features" || image.bitmap));
  const cards = stages.map(([, title, , note], i) => card(`${i + 1}  ${title}`, note));
  $("cards").replaceChildren(...cards.map((each) => each.element));
  for (const [i, [signature, , kind]] of stages.entries()) {
    if (mine !== turn) return;
    try {
      if (kind === "heat") {
        const { pixels, canvas } = shrunk(image.bitmap);
        const body = { signature_name: signature, instances: [pixels] };
        drawHeat(cards[i], (await api(`${model}:predict`, body)).predictions[0], canvas);
        continue;
      }
      const answer = known[signature] ?? (await ask(model, signature));
      const least = signature === "detect" ? Number($("least").value) : 0;
      if (kind === "boxes") cards[i].picture(image, shownOf(answer.rows, least, signature === "localize"));
      else cards[i].classes(answer.rows);
    } catch (error) {
      cards[i].fault(error.message);
    }
  }
}

// Pixels as nested lists are long: a small image does for a picture of the features, if no smaller than a window.
function shrunk(bitmap) {
  const [longest, shortest] = [Math.max(bitmap.width, bitmap.height), Math.min(bitmap.width, bitmap.height)];
  const factor = Math.min(1, Math.max(320 / longest, 240 / shortest), 800 / longest);
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * factor));
  canvas.height = Math.max(1, Math.round(bitmap.height * factor));
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const { data } = pen.getImageData(0, 0, canvas.width, canvas.height);
  const row = (y) => Array.from({ length: canvas.width }, (_, x) => {
    const at = 4 * (y * canvas.width + x);
    return [data[at], data[at + 1], data[at + 2]];
  });
  return { canvas, pixels: Array.from({ length: canvas.height }, (_, y) => row(y)) };
}

function bytes(count) {
  return count < 1e6 ? `${Math.max(1, Math.round(count / 1e3))} kB` : `${(count / 1e6).toFixed(1)} MB`;
}

const guarded = (job) => (event) => Promise.resolve(job(event)).catch(fail);
$("file").addEventListener("change", guarded(() => take($("file").files[0])));
$("model").addEventListener("change", guarded(run));
$("least").addEventListener("input", filter);
$("access").addEventListener("submit", guarded(async (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", $("token").value);
  await listModels();
  fail(null);
  await run();
}));
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
addEventListener("dragleave", () => document.body.classList.remove("over"));
addEventListener("drop", guarded((event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  return take(event.dataTransfer.files[0]);
}));
addEventListener("paste", guarded((event) => take(event.clipboardData.files[0])));
listModels().then(run).catch(fail);
