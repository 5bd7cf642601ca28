// Boxes over pictures, lists of classes, and a picture of features; nothing here asks the server.

const make = (tag, className, text) => {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
};

// A class keeps its colour in all pictures and lists; the golden ratio keeps those of neighbours apart.
const hues = new Map();

function colour(label) {
  if (!hues.has(label)) hues.set(label, (20 + hues.size * 222.49) % 360);
  return `hsl(${hues.get(label)} 85% 68%)`;
}

// Takes [label, score] pairs, and yxyx boxes where there are any.
export function rows(pairs, boxes) {
  const all = pairs.map(([label, score], i) => ({ label: label || "?", score: score ?? 0, box: boxes?.[i] }));
  all.sort((a, b) => b.score - a.score);
  return all.map((row) => ({ ...row, colour: colour(row.label) }));
}

// Gives the rows that score enough and, unless several may, whose boxes overlap no better one of them.
export function shownOf(all, least, several) {
  const kept = [];
  for (const row of all) {
    const again = !several && row.box && kept.some((better) => iou(better.box, row.box) > RIVAL_IOU);
    if (row.score >= least && !again) kept.push(row);
  }
  return kept;
}

const RIVAL_IOU = 0.4; // as overfeat_tf/merge/calibration.py has it

function iou(one, other) {
  const side = (axis) => Math.min(one[axis + 2], other[axis + 2]) - Math.max(one[axis], other[axis]);
  const area = ([top, left, bottom, right]) => (bottom - top) * (right - left);
  const shared = Math.max(side(0), 0) * Math.max(side(1), 0);
  return shared / (area(one) + area(other) - shared) || 0;
}

export function drawBoxes(frame, found) {
  const boxes = found.filter((row) => row.box).map((row) => {
    const [top, left, bottom, right] = row.box;
    const element = make("div", "box");
    element.style.setProperty("--colour", row.colour);
    element.style.top = `${100 * top}%`;
    element.style.left = `${100 * left}%`;
    element.style.height = `${100 * (bottom - top)}%`;
    element.style.width = `${100 * (right - left)}%`;
    element.classList.toggle("low", top < 0.06);
    element.classList.toggle("right", left + right > 1.2);
    element.append(make("span", "", `${row.label} ${row.score.toFixed(2)}`));
    row.element = element;
    return element;
  });
  for (const old of frame.querySelectorAll(".box")) old.remove();
  frame.append(...boxes.reverse()); // the best one on top
}

export function drawClasses(list, found, frame) {
  const items = found.map((row) => {
    const item = make("li");
    item.style.setProperty("--colour", row.colour);
    const score = make("data", "", row.score.toFixed(2));
    score.value = row.score;
    const meter = make("meter");
    meter.value = row.score;
    meter.setAttribute("aria-hidden", "true");
    item.append(make("span", "", row.label), score, meter);
    if (frame && row.element) {
      item.tabIndex = 0;
      const light = (on) => {
        frame.classList.toggle("lit", on);
        row.element.classList.toggle("on", on);
      };
      for (const event of ["mouseenter", "focus"]) item.addEventListener(event, () => light(true));
      for (const event of ["mouseleave", "blur"]) item.addEventListener(event, () => light(false));
    }
    return item;
  });
  list.replaceChildren(...items);
}

// A stage's card: its title, what it shows, and a note beneath.
export function card(title, note) {
  const element = make("article", "card");
  const body = make("div", "", "…");
  element.append(make("h3", "", title), body, make("p", "note", note));
  return {
    element,
    show: (...content) => body.replaceChildren(...content),
    fault: (message) => body.replaceChildren(make("p", "fault", message)),
    classes(found) {
      const list = make("ol");
      drawClasses(list, found.slice(0, 5));
      body.replaceChildren(found.length ? list : make("p", "", "none"));
    },
    picture(image, found) {
      const frame = make("div", "frame");
      const picture = make("img");
      picture.src = image.url;
      picture.alt = `${found.length} boxes: ${found.map((row) => row.label).join(", ")}`;
      frame.append(picture);
      drawBoxes(frame, found);
      body.replaceChildren(image.bitmap ? frame : make("p", "", "The browser cannot show this image."));
    },
  };
}

// Draws a feature map [h][w][channels] over the picture: for each window the length of its rectified features.
export function drawHeat(into, map, picture) {
  const energy = map.map((row) => row.map((cell) => Math.hypot(...cell.map((value) => Math.max(0, value ?? 0)))));
  const flat = energy.flat();
  const [least, most] = [Math.min(...flat), Math.max(...flat)];
  const small = document.createElement("canvas");
  [small.width, small.height] = [energy[0].length, energy.length];
  const pixels = new ImageData(small.width, small.height);
  flat.forEach((value, i) => pixels.data.set(heat((value - least) / (most - least || 1)), 4 * i));
  small.getContext("2d").putImageData(pixels, 0, 0);
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [picture.width, picture.height];
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `Strength of the features in ${small.width} by ${small.height} windows`);
  const pen = canvas.getContext("2d");
  pen.filter = "grayscale(1)";
  pen.drawImage(picture, 0, 0);
  pen.filter = "none";
  pen.globalAlpha = 0.7;
  pen.imageSmoothingEnabled = true;
  pen.drawImage(small, 0, 0, canvas.width, canvas.height);
  into.show(canvas);
}

// From dark violet over red to light yellow.
const STOPS = [[13, 8, 60], [120, 28, 109], [237, 105, 37], [252, 255, 164]];

function heat(share) {
  const at = Math.min(share * (STOPS.length - 1), STOPS.length - 1 - 1e-9);
  const [from, to, part] = [STOPS[Math.floor(at)], STOPS[Math.floor(at) + 1], at % 1];
  return [...from.map((value, i) => Math.round(value + part * (to[i] - value))), 255];
}
