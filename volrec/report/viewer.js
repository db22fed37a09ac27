// Slice viewer of volrec's reports (volrec/report/viewer.py): scroll, windows, overlay, curve of slice scores.
// It starts every .vr-viewer of the page, and asks nothing of the network.
"use strict";
(() => {
  const PAGE_STEP = 10;
  const KEPT_STUDIES = 4; // unpacked at a time
  const WHEEL_NOTCH = 50; // pixels: a wheel reports 100 or more a notch, a touch pad a few at a time
  const WHEEL_SMALL = 24; // pixels of a touch pad to the next slice
  const TOUCH_STEP = 10; // pixels of a finger to the next slice
  const REST = 500; // ms after which the wheel at the end of the stack moves the page again

  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

  function shortNumber(value) {
    const size = Math.abs(value);
    if (size >= 100 || Number.isInteger(value)) return String(Math.round(value));
    return String(Number(value.toPrecision(3)));
  }

  async function inflate(text) {
    const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  // The other way round from pack_voxels: low and high bytes, folded differences, values.
  function unpackVoxels(bytes) {
    const count = bytes.length / 2;
    const voxels = new Int16Array(count);
    let value = 0;
    for (let place = 0; place < count; place += 1) {
      const folded = bytes[place] | (bytes[count + place] << 8);
      value += (folded >>> 1) ^ -(folded & 1);
      voxels[place] = value;
      value = voxels[place]; // wraps as 16 bits do
    }
    return voxels;
  }

  function unpackWeights(bytes) {
    let value = 0;
    return bytes.map((step) => (value = (value + step) & 255));
  }

  function start(root) {
    const find = (name) => root.querySelector(`.vr-${name}`);
    const app = find("app");
    if (typeof DecompressionStream === "undefined") {
      find("old").hidden = false;
      return;
    }
    const data = JSON.parse(find("data").textContent);
    const stage = find("stage");
    const canvas = stage.querySelector("canvas");
    const pen = canvas.getContext("2d");
    const grey = document.createElement("canvas");
    const heat = document.createElement("canvas");
    const list = find("list");
    const slider = find("slider");
    const opacity = find("opacity");
    const toggle = find("toggle");
    const plot = find("plot");
    const [scoreLine, axis] = find("curve-name").children;
    const options = [...list.querySelectorAll("[role=option]")];
    const presets = [...root.querySelectorAll(".vr-preset")];
    const figures = [...root.querySelectorAll(".vr-static figure")];
    const unpacked = new Map();
    const firstOpacity = Number(opacity.value);

    let number = -1; // of the study
    let study = null;
    let volume = null; // {voxels, weights} of the study, null while it is unpacked
    let slice = 0;
    let level = 0;
    let width = 1;
    let preset = ""; // name of the window, empty after dragging
    let overlay = true;
    let wheeled = 0;
    let wheelTime = 0;
    let saidLater = 0;

    async function unpack(carrier) {
      if (!unpacked.has(carrier)) {
        const text = (name) => root.querySelector(`.vr-${name}[data-number="${carrier}"]`)?.textContent;
        const weights = text("weights");
        const voxels = unpackVoxels(await inflate(text("voxels")));
        unpacked.set(carrier, { voxels, weights: weights ? unpackWeights(await inflate(weights)) : null });
        if (unpacked.size > KEPT_STUDIES) unpacked.delete(unpacked.keys().next().value);
      }
      return unpacked.get(carrier);
    }

    async function choose(wanted) {
      const next = clamp(wanted, 0, options.length - 1);
      if (next === number) return;
      number = next;
      study = data.studies[number];
      volume = null;
      options.forEach((option, place) => option.setAttribute("aria-selected", String(place === number)));
      list.setAttribute("aria-activedescendant", options[number].id);
      // Scrolls the list only: scrollIntoView would move the page as well.
      const top = options[number].offsetTop;
      const bottom = top + options[number].offsetHeight;
      list.scrollTop = clamp(list.scrollTop, bottom - list.clientHeight, top);
      slice = study.start;
      const kept = study.windows.findIndex(([name]) => name === preset);
      setWindow(Math.max(kept, 0));
      describe();
      find("message").textContent = "Unpacking …";
      root.dataset.state = "busy";
      draw();
      const wantedNumber = number;
      try {
        const found = await unpack(study.carrier);
        if (wantedNumber !== number) return; // another study was chosen meanwhile
        volume = found;
        find("message").textContent = "";
      } catch {
        if (wantedNumber !== number) return;
        find("message").textContent = "This study cannot be unpacked. Is the file complete?";
      }
      root.dataset.state = "ready";
      draw();
    }

    // What belongs to the study and not to the slice.
    function describe() {
      const [count] = study.shape;
      slider.max = String(count - 1);
      slider.disabled = count === 1;
      find("study").textContent = study.title;
      ["left", "right", "top", "bottom"].forEach((side, place) => {
        const [letter, word] = study.edges[place];
        const mark = stage.querySelector(`.vr-${side}`);
        mark.textContent = letter;
        mark.title = `the patient's ${word}`;
      });
      const ends = find("ends").children;
      study.ends.forEach((word, place) => (ends[place].textContent = word));
      find("plane").textContent = study.plane;
      find("caption").textContent = study.caption;
      find("facts").replaceChildren(
        ...study.facts.map(([name, value]) => {
          const pair = document.createElement("div");
          const term = document.createElement("dt");
          const text = document.createElement("dd");
          term.textContent = name;
          text.textContent = value;
          pair.append(term, text);
          return pair;
        }),
      );
      presets.forEach((button, place) => {
        button.hidden = place >= study.windows.length;
        if (button.hidden) return;
        const [name, itsLevel, itsWidth] = study.windows[place];
        const key = document.createElement("kbd");
        key.textContent = String(place + 1);
        button.replaceChildren(key, ` ${name}`);
        button.title = `level ${shortNumber(itsLevel)}, width ${shortNumber(itsWidth)} ${study.unit}`.trim();
      });
      find("overlay").hidden = !study.overlay;
      legend();
      const [low, high] = find("legend").querySelectorAll("span");
      low.textContent = study.signed ? "against" : "none";
      high.textContent = study.signed ? "for" : "strongest";
      find("evidence").textContent = study.evidence;
      find("strongest").hidden = !study.strongest;
      const curve = figures[study.carrier].querySelector(".vr-scores");
      find("curve").hidden = !curve;
      plot.replaceChildren();
      if (curve) {
        const copy = curve.cloneNode(true);
        plot.append(copy);
        axis.textContent = `axis ${copy.dataset.low} to ${copy.dataset.high}`;
      }
    }

    function setWindow(place) {
      if (place >= study.windows.length) return;
      [preset, level, width] = study.windows[place];
    }

    function go(wanted) {
      slice = clamp(Math.round(wanted), 0, study.shape[0] - 1);
      draw();
    }

    // The text around the picture; the picture itself waits for the voxels.
    function write() {
      const score = study.scores[slice];
      const hasScore = score !== null && score !== undefined;
      const scoreText = hasScore ? `${study.score} ${score.toPrecision(3)}` : "";
      find("slice").textContent = `${study.slices[slice]}\n${study.positions[slice]}`;
      const windowText = `L ${shortNumber(level)}  W ${shortNumber(width)} ${study.unit}`.trim();
      find("window").textContent = preset ? `${windowText}\n${preset}` : windowText;
      slider.value = String(slice);
      slider.setAttribute("aria-valuetext", `${study.slices[slice]}, ${study.positions[slice]}`);
      presets.forEach((button, place) => {
        button.setAttribute("aria-pressed", String(!button.hidden && study.windows[place][0] === preset));
      });
      toggle.setAttribute("aria-pressed", String(overlay));
      opacity.disabled = !overlay;
      scoreLine.textContent = hasScore
        ? `${study.score} of this slice: ${score.toPrecision(3)}`
        : `${study.score} of each slice`;
      const cursor = plot.querySelector(".vr-cursor");
      if (cursor) {
        const across = plot.firstChild.viewBox.baseVal;
        cursor.setAttribute("d", `M${study.places[slice] * across.width} 0V${across.height}`);
      }
      clearTimeout(saidLater);
      const said = [study.title, study.slices[slice], scoreText, windowText].filter(Boolean).join(", ");
      saidLater = setTimeout(() => (find("said").textContent = said), 400); // not every slice of a long scroll
    }

    function draw() {
      write();
      const ratio = window.devicePixelRatio || 1;
      const across = Math.round(stage.clientWidth * ratio);
      const up = Math.round(stage.clientHeight * ratio);
      if (!across || !up) return;
      if (canvas.width !== across || canvas.height !== up) {
        canvas.width = across;
        canvas.height = up;
      }
      pen.fillStyle = "#000";
      pen.fillRect(0, 0, across, up);
      if (!volume) return;
      paint();
      const factor = Math.min(across / study.mm[0], up / study.mm[1]);
      const wide = study.mm[0] * factor;
      const high = study.mm[1] * factor;
      const box = [(across - wide) / 2, (up - high) / 2, wide, high];
      pen.imageSmoothingEnabled = true;
      pen.imageSmoothingQuality = "high";
      pen.drawImage(grey, ...box);
      if (overlay && volume.weights) {
        pen.globalAlpha = Number(opacity.value) / 100;
        pen.drawImage(heat, ...box);
        pen.globalAlpha = 1;
      }
    }

    // One slice, voxel by voxel, into the two hidden canvases.
    function paint() {
      const [, rows, columns] = study.shape;
      const size = rows * columns;
      for (const layer of [grey, heat]) {
        layer.width = columns;
        layer.height = rows;
      }
      const picture = new ImageData(columns, rows);
      const first = slice * size;
      const low = level - width / 2;
      for (let place = 0; place < size; place += 1) {
        const value = volume.voxels[first + place] * study.scale + study.offset;
        const shade = ((value - low) / width) * 255; // clipped and rounded by the array
        picture.data[4 * place] = shade;
        picture.data[4 * place + 1] = shade;
        picture.data[4 * place + 2] = shade;
        picture.data[4 * place + 3] = 255;
      }
      grey.getContext("2d").putImageData(picture, 0, 0);
      if (!overlay || !volume.weights) return;
      const colours = data.colours[study.signed ? "signed" : "for"];
      for (let place = 0; place < size; place += 1) {
        const entry = 4 * volume.weights[first + place];
        for (let channel = 0; channel < 4; channel += 1) {
          picture.data[4 * place + channel] = colours[entry + channel];
        }
      }
      heat.getContext("2d").putImageData(picture, 0, 0);
    }

    function legend() {
      if (!study.overlay) return;
      const bar = find("legend").querySelector("canvas");
      const colours = data.colours[study.signed ? "signed" : "for"];
      const picture = new ImageData(256, 1);
      const last = study.signed ? 254 : 255;
      for (let place = 0; place < 256; place += 1) {
        const entry = 4 * Math.round((place / 255) * last);
        for (let channel = 0; channel < 4; channel += 1) {
          picture.data[4 * place + channel] = colours[entry + channel];
        }
      }
      bar.getContext("2d").putImageData(picture, 0, 0);
    }

    function reset() {
      setWindow(0);
      overlay = true;
      opacity.value = String(firstOpacity);
      go(study.start);
    }

    function switchOverlay() {
      overlay = !overlay;
      draw();
    }

    function fade(step) {
      opacity.value = String(Number(opacity.value) + step);
      overlay = true;
      draw();
    }

    function fullScreen() {
      if (document.fullscreenElement) document.exitFullscreen();
      else app.requestFullscreen().catch(() => {}); // a frame may forbid it: the page stays as it is
    }

    // Keys of the whole viewer; sliders and the list keep the arrows for themselves.
    function onKey(event) {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const inList = list.contains(event.target);
      const moves = inList
        ? {
            ArrowDown: () => choose(number + 1),
            ArrowUp: () => choose(number - 1),
            Home: () => choose(0),
            End: () => choose(options.length - 1),
          }
        : {
            ArrowUp: () => go(slice + 1),
            ArrowRight: () => go(slice + 1),
            ArrowDown: () => go(slice - 1),
            ArrowLeft: () => go(slice - 1),
            Home: () => go(0),
            End: () => go(study.shape[0] - 1),
          };
      Object.assign(moves, { PageUp: () => go(slice + PAGE_STEP), PageDown: () => go(slice - PAGE_STEP) });
      const letters = {
        o: () => study.overlay && switchOverlay(),
        s: () => go(study.start),
        r: reset,
        n: () => choose(number + 1),
        p: () => choose(number - 1),
        f: fullScreen,
        "[": () => fade(-10),
        "]": () => fade(10),
      };
      let act = letters[event.key.toLowerCase()];
      if (/^[1-9]$/.test(event.key)) {
        act = () => {
          setWindow(Number(event.key) - 1);
          draw();
        };
      }
      if (!act && (inList || event.target === stage)) act = moves[event.key];
      if (!act) return;
      event.preventDefault();
      act();
    }

    function onWheel(event) {
      if (event.ctrlKey) return; // the page is being enlarged
      const now = event.timeStamp;
      const step = event.deltaMode === 0 ? event.deltaY : event.deltaY * 100;
      if (!step) return;
      let slices = 0;
      if (Math.abs(step) >= WHEEL_NOTCH) {
        slices = Math.sign(step) * Math.max(1, Math.round(Math.abs(step) / 120));
        wheeled = 0;
      } else {
        wheeled += step;
        slices = Math.trunc(wheeled / WHEEL_SMALL);
        wheeled -= slices * WHEEL_SMALL;
      }
      const atEnd = step > 0 ? slice === 0 : slice === study.shape[0] - 1;
      if (atEnd && now - wheelTime > REST) return; // whoever scrolls on wants to leave
      wheelTime = now;
      event.preventDefault();
      if (slices) go(slice - slices);
    }

    // Mouse and pen set the window, a finger scrolls.
    function onDrag(event) {
      if (event.button !== 0) return;
      stage.setPointerCapture(event.pointerId);
      const begin = { x: event.clientX, y: event.clientY, level, width, slice };
      const gain = study.windows[0][2] / 300;
      const move = (next) => {
        const right = next.clientX - begin.x;
        const down = next.clientY - begin.y;
        if (event.pointerType === "touch") {
          go(begin.slice - down / TOUCH_STEP);
          return;
        }
        if (right || down) {
          width = Math.max(study.scale, begin.width + right * gain);
          level = begin.level + down * gain;
          preset = "";
          draw();
        }
      };
      const end = () => {
        stage.removeEventListener("pointermove", move);
        for (const name of ["pointerup", "pointercancel"]) stage.removeEventListener(name, end);
      };
      stage.addEventListener("pointermove", move);
      for (const name of ["pointerup", "pointercancel"]) stage.addEventListener(name, end);
    }

    function onPlot(event) {
      if (event.type === "pointerdown") plot.setPointerCapture(event.pointerId);
      else if (!event.buttons) return;
      const box = plot.getBoundingClientRect();
      const place = (event.clientX - box.left) / box.width;
      const distance = study.places.map((other) => Math.abs(other - place));
      go(distance.indexOf(Math.min(...distance)));
    }

    app.addEventListener("keydown", onKey);
    stage.addEventListener("wheel", onWheel, { passive: false });
    stage.addEventListener("pointerdown", onDrag);
    plot.addEventListener("pointerdown", onPlot);
    plot.addEventListener("pointermove", onPlot);
    slider.addEventListener("input", () => go(Number(slider.value)));
    opacity.addEventListener("input", draw);
    toggle.addEventListener("click", switchOverlay);
    find("strongest").addEventListener("click", () => go(study.start));
    find("reset").addEventListener("click", reset);
    find("full").addEventListener("click", fullScreen);
    find("full").hidden = !document.fullscreenEnabled;
    options.forEach((option, place) => option.addEventListener("click", () => choose(place)));
    presets.forEach((button, place) =>
      button.addEventListener("click", () => {
        setWindow(place);
        draw();
      }),
    );
    app.hidden = false;
    root.classList.add("vr-live");
    new ResizeObserver(() => draw()).observe(stage);
    choose(0);
  }

  const startAll = () => document.querySelectorAll(".vr-viewer:not(.vr-live)").forEach(start);
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", startAll);
  else startAll();
})();
