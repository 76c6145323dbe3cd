{{/* Clients of HyperPod look for the Deployment by this name. */}}
{{- define "operator.name" -}}
hyperpod-inference-operator-controller-manager
{{- end }}

{{/* Of what belongs to no namespace: an operator in another namespace has its own. */}}
{{- define "operator.clusterName" -}}
{{ include "operator.name" . }}-{{ .Release.Namespace }}
{{- end }}

{{- define "operator.selector" -}}
app.kubernetes.io/name: tierline-operator
app.kubernetes.io/instance: {{ .Release.Name }}
control-plane: controller-manager
{{- end }}

{{- define "operator.labels" -}}
{{ include "operator.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "operator.image" -}}
{{ .image.repository }}:{{ .image.tag | default .version }}
{{- end }}

{{/* The file that `tierline operator run --config` reads. */}}
{{- define "operator.settings" -}}
{{- $ours := dict
  "namespace" .Release.Namespace
  "image" (include "operator.image" (dict "image" .Values.image "version" .Chart.AppVersion))
  "connector_image" (include "operator.image" (dict "image" .Values.connectorImage "version" .Chart.AppVersion))
}}
{{- if .Values.watchedNamespaces }}
{{- $_ := set $ours "watched_namespaces" .Values.watchedNamespaces }}
{{- end }}
{{- if .Values.catalogue }}
{{- $_ := set $ours "catalogue" "/etc/tierline/catalogue.yaml" }}
{{- end }}
{{- merge $ours .Values.settings | toYaml }}
{{- end }}
