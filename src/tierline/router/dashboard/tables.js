// Figures as text, and tables that change in place: a cell is written only when it changes, so that neither the focus
// nor a selection is lost. Everything becomes text, nothing is read as markup.

export const short = url => url.replace(/^https?:\/\//, "");
export const number = value => (value == null ? "–" : Math.round(value).toLocaleString("en"));
export const percent = share =>
  share == null || Number.isNaN(share) ? "–" : `${(100 * share).toFixed(share && share < 0.0995 ? 1 : 0)} %`;
export const seconds = value =>
  value == null ? "–" : value < 0.0995 ? `${(1000 * value).toPrecision(2)} ms` : value < 9.95 ? `${value.toFixed(2)} s` : `${value.toFixed(1)} s`;
export const clock = at => new Date(1000 * at).toLocaleTimeString("en-GB");

export function bytes(value) {
  if (value == null) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit && value < 99.5 ? value.toPrecision(3) : Math.round(value)} ${units[unit]}`;
}

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Rows of cells; a cell is a text, or {text, kind, parts}: `kind` is a class, `parts` are shares of a bar by class. */
export function fill(table, rows, nothing) {
  const body = table.tBodies[0], columns = table.tHead.rows[0].cells.length;
  const wanted = rows.length ? rows : [[{ text: nothing, span: columns, kind: "empty" }]];
  while (body.rows.length > wanted.length) body.deleteRow(-1);
  wanted.forEach((cells, index) => {
    let row = body.rows[index];
    if (!row || row.cells.length !== cells.length) {
      const fresh = document.createElement("tr");
      cells.forEach((cell, column) => {
        const made = document.createElement(column === 0 && !cell.span ? "th" : "td");
        if (column === 0 && !cell.span) made.scope = "row";
        fresh.append(made);
      });
      if (row) row.replaceWith(fresh);
      else body.append(fresh);
      row = fresh;
    }
    cells.forEach((given, column) => fillCell(row.cells[column], typeof given === "object" ? given : { text: given }));
  });
}

function fillCell(cell, { text, kind = "", span = 1, parts = null }) {
  if (cell.className !== kind) cell.className = kind;
  if (cell.colSpan !== span) cell.colSpan = span;
  if (!parts) {
    setText(cell, text);
    return;
  }
  let [bar, label] = cell.children;
  if (!bar) {
    cell.textContent = "";
    bar = document.createElement("div");
    bar.className = "bar";
    bar.ariaHidden = "true";
    label = document.createElement("span");
    cell.append(bar, label);
  }
  setText(label, text);
  drawBar(bar, parts);
}

/** Shares from 0 to 1 by class, one after the other. */
export function drawBar(bar, parts) {
  const named = Object.entries(parts);
  while (bar.children.length > named.length) bar.lastChild.remove();
  named.forEach(([kind, share], index) => {
    const part = bar.children[index] ?? bar.appendChild(document.createElement("i"));
    if (part.className !== kind) part.className = kind;
    const width = `${(100 * Math.min(1, Math.max(0, share || 0))).toFixed(1)}%`;
    if (part.style.width !== width) part.style.width = width;
  });
}
