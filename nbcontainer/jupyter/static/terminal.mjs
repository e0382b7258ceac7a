// The page of one terminal: xterm.js at one end, the web socket of Jupyter's own terminals (terminado) at the other.
import { FitAddon } from "./addon-fit.mjs";
import { Terminal } from "./xterm.mjs";

const { base, name } = document.body.dataset;
const screen = new Terminal({ cursorBlink: true, fontSize: 13, scrollback: 5000, theme: { background: "#1b1b1b" } });
const fit = new FitAddon();
screen.loadAddon(fit);
screen.open(document.getElementById("terminal"));
fit.fit();

const say = (text) => screen.write(`\r\n\x1b[2m${text}\x1b[0m\r\n`);
const cookie = (wanted) => document.cookie.match(`(?:^|; )${wanted}=([^;]*)`)?.[1] ?? "";

const answer = await fetch(`${base}nbcontainer/terminals/${name}`, {
  method: "POST",
  headers: { "X-XSRFToken": cookie("_xsrf") },
}).catch(() => null);

const told = await answer?.json().catch(() => null);

if (answer?.ok && told) {
  talk(told.terminal);
} else {
  say(told?.message ?? "the notebook server does not answer");
}

function talk(terminal) {
  const address = new URL(`${base}terminals/websocket/${terminal}`, location.href);
  address.protocol = address.protocol.replace("http", "ws");
  const socket = new WebSocket(address);
  const send = (...message) => socket.readyState === WebSocket.OPEN && socket.send(JSON.stringify(message));
  const tellSize = () => send("set_size", screen.rows, screen.cols, window.innerHeight, window.innerWidth);
  let over = false;

  socket.onopen = () => {
    tellSize();
    screen.focus();
  };
  socket.onmessage = ({ data }) => {
    const [kind, text] = JSON.parse(data);
    if (kind === "stdout") screen.write(text);
    if (kind === "disconnect") {
      over = true;
      say("[ended]");
      screen.options.disableStdin = true;
      socket.close();
    }
  };
  socket.onclose = () => over || say("[the connection to the notebook server is gone; reload to connect again]");
  screen.onData((keys) => send("stdin", keys));
  screen.onResize(tellSize);
  new ResizeObserver(() => document.body.clientHeight > 20 && fit.fit()).observe(document.body);
}
